"""Quantisation, FP8 KV cache, offload and guessing ahead on a real GPU; skipped without one.

MODEL is the small model's directory. Needs no network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anabranch.v1 import generation_pb2 as pb
from services.local_engine.engine import EngineStartError, SamplingSpec
from services.local_engine.on_vllm.engine import VllmEngine
from services.local_engine.on_vllm.options import VllmOptions
from services.local_engine.on_vllm.quantize.checkpoint import quantize
from services.local_engine.on_vllm.quantize.schemes import Scheme
from services.local_engine.on_vllm.tuning import Tuning
from tests.support.engines import MODEL, run_job

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.timeout(900),
    pytest.mark.vllm,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.skipif(not MODEL.is_dir(), reason="no model: run tools/fetch_model.py"),
]

NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}


async def answer_of(model: Path, **more: Any) -> str:
    """The greedy answer to a question that the small model knows."""
    engine = VllmEngine(
        VllmOptions(
            str(model),
            "m",
            max_num_seqs=16,
            max_model_len=1024,
            gpu_memory_utilization=0.3,
            enforce_eager=True,
            **more,
        )
    )
    await engine.start()
    try:
        part = pb.ContentPart(text="What is the capital of France?")
        message = pb.Message(role=pb.ROLE_USER, content=[part])
        prompt = await engine.encode(pb.GenerateRequest(messages=[message]))
        return (await run_job(engine, prompt, SamplingSpec(max_tokens=40, temperature=0.0))).text()
    finally:
        await engine.close()


@pytest.mark.parametrize("scheme", list(Scheme), ids=lambda scheme: scheme.value)
async def test_a_checkpoint_of_every_scheme_answers_sensibly(scheme: Scheme, tmp_path: Path):
    made = quantize(MODEL, tmp_path / "model", scheme, dtype="bfloat16")
    assert "Paris" in await answer_of(made.path)


@pytest.mark.parametrize(
    "more",
    [
        {"quantization": "fp8"},
        {"tuning": Tuning(kv_cache_dtype="fp8")},
        {"tuning": Tuning(cpu_offload_gib=0.1)},
        {"tuning": Tuning(speculative=NGRAM)},
    ],
    ids=["fp8 weights as they load", "fp8 cache", "offload", "ngram"],
)
async def test_a_setting_of_memory_leaves_the_answer_sensible(more: dict[str, Any]):
    assert "Paris" in await answer_of(MODEL, dtype="bfloat16", **more)


async def test_random_weights_load_without_a_file_of_weights(tmp_path: Path):
    for file in MODEL.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert await answer_of(tmp_path, tuning=Tuning(load_format="dummy")) != ""


async def test_more_gpus_than_there_are_is_refused_at_once():
    wanted = torch.cuda.device_count() * 2
    with pytest.raises(EngineStartError, match=f"is {wanted} GPUs"):
        await answer_of(MODEL, tensor_parallel_size=wanted)
