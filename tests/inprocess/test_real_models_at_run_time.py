"""Models and adapters at run time with vLLM and real weights: one process, one start, in order.

The tests share a process that begins with some layers of SmolLM2-135M; each leaves it as it found
it, but for the swap, which is the last.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from anabranch.v1 import errors_pb2, model_admin_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.channels import open_channel
from services.chassis.errors import fault_from_rpc_error
from services.local_engine.app import running
from services.local_engine.settings import Settings
from tests.inprocess.test_local_engine import Caller, request
from tests.inprocess.test_models_at_run_time import Operator, Stream, soon
from tests.support.engines import MODEL
from tests.support.local_keys import LocalKeys
from tests.support.waiting import until
from tests.support.weights import write_adapter, write_shorter_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(1200),
]

NAME = "smollm2"
HIDDEN, KEY_VALUES = 576, 192
LAYERS = 6
"""Of SmolLM2's thirty: the answers make little sense, and are as exact, with less memory."""
PROMPT = "The capital of France is"
LOAD = {"max_model_len": 512, "max_num_seqs": 8, "cpu_kv_cache_gib": 1}
OFFLINE = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
if __name__ == "__main__":
    model, adapter, prompt = sys.argv[1:]
    llm = LLM(model, dtype="float32", enforce_eager=True, max_model_len=512, enable_lora=True,
              max_loras=2, max_lora_rank=8, max_num_seqs=8)
    out = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True),
                       lora_request=LoRARequest("x", 1, adapter))
    print("TOKENS", json.dumps(list(out[0].outputs[0].token_ids)))
"""


def modules(outputs: int = HIDDEN) -> dict[str, tuple[int, int]]:
    return {
        f"model.layers.{layer}.self_attn.{kind}": (size, HIDDEN)
        for layer in range(LAYERS)
        for kind, size in (("q_proj", outputs), ("v_proj", KEY_VALUES))
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def operator(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Operator]:
    if not MODEL.is_dir():
        pytest.skip("no model: run tools/fetch_model.py")
    root = tmp_path_factory.mktemp("weights")
    write_shorter_model(MODEL, root / "base", LAYERS)
    write_adapter(root / "real", modules(), rank=8, scale=0.08)
    keys = LocalKeys()
    settings = Settings(
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        model=str(root / "base"),
        served_model_name=NAME,
        max_model_len=512,
        max_num_seqs=8,
        cpu_kv_cache_gib=1,
        model_sources=(str(root),),
        max_adapters=2,
        max_adapter_rank=8,
        hang_after=0.0,
        drain_timeout=5.0,
    )
    async with (
        running(settings, key_source=keys) as host,
        open_channel(host.address) as channel,
    ):
        found = Operator(Caller(host, channel, keys.token("generate")), keys)
        found.patience = 600.0
        found.root = root
        yield found


async def tokens(operator: Operator, model: str, count: int = 12) -> list[int]:
    call = operator.caller.stub.Generate(
        request(model=model, prompt=PROMPT, sampling={"max_tokens": count, "ignore_eos": True}),
        metadata=operator.metadata,
        timeout=operator.patience,
    )
    return list((await call).choices[0].token_ids)


async def test_an_adapter_changes_the_answer_as_it_does_in_vllm_itself(operator: Operator) -> None:
    stream = await Stream(operator, model=NAME, tokens=400, text="Tell me of the sea.").begun()
    await operator.ask("LoadAdapter", base=NAME, name="a", source="real")
    base, adapted = await tokens(operator, NAME), await tokens(operator, f"{NAME}:a")
    assert base != adapted
    last = await stream.whole()
    assert last.finish_reason == pb.FINISH_REASON_LENGTH
    assert base == await tokens(operator, NAME)
    answer = await operator.ask("UnloadAdapter", base=NAME, name="a")
    assert answer.cut_off == 0
    assert await operator.listed() == [NAME]
    offline = await asyncio.to_thread(_offline, operator.root)
    assert adapted == offline


def _offline(root: Path) -> list[int]:
    """What vllm.LLM makes of it, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(root / "base"), str(root / "real"), PROMPT],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={
            "PATH": "/usr/bin:/bin",
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "TORCH_COMPILE_DISABLE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "HOME": "/tmp",
        },
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("TOKENS ")]
    assert lines, done.stderr[-2000:]
    found: list[int] = json.loads(lines[0].removeprefix("TOKENS "))
    return found


async def test_an_adapter_of_the_wrong_shape_is_refused_while_a_stream_goes_on(
    operator: Operator,
) -> None:
    stream = await Stream(operator, model=NAME, tokens=300).begun()
    write_adapter(operator.root / "other", modules(outputs=1024), rank=8)
    fault = await operator.refused("LoadAdapter", base=NAME, name="b", source="other")
    assert fault.reason == errors_pb2.ERROR_REASON_MODEL_REFUSED
    assert "1024x576 in the adapter and 576x576 in the model" in fault.message
    unknown = {"model.layers.0.self_attn.z_proj": (HIDDEN, HIDDEN)}
    write_adapter(operator.root / "unknown", unknown, rank=8)
    fault = await operator.refused("LoadAdapter", base=NAME, name="b", source="unknown")
    assert "z_proj" in fault.message
    last = await stream.whole()
    assert last.finish_reason == pb.FINISH_REASON_LENGTH


async def test_what_only_vllm_refuses_of_an_adapter_leaves_its_engine_alive(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own look at the files is switched off: vLLM meets the wrong shapes itself."""
    stream = await Stream(operator, model=NAME, tokens=300).begun()
    monkeypatch.setattr("services.local_engine.adapter_changes.check_adapter", lambda *_, **__: 8)
    write_adapter(operator.root / "other2", modules(outputs=1024), rank=8)
    fault = await operator.refused("LoadAdapter", base=NAME, name="b", source="other2")
    assert fault.reason == errors_pb2.ERROR_REASON_MODEL_REFUSED
    assert fault.message
    monkeypatch.undo()
    assert (await stream.whole()).finish_reason == pb.FINISH_REASON_LENGTH
    for name in ("c", "d"):  # every slot is still there
        await operator.ask("LoadAdapter", base=NAME, name=name, source="real")
        assert await tokens(operator, f"{NAME}:{name}")
    for name in ("c", "d"):
        await operator.ask("UnloadAdapter", base=NAME, name=name)


async def test_weights_that_are_damaged_are_refused_before_anything_starts(
    operator: Operator,
) -> None:
    shorter = write_shorter_model(MODEL, operator.root / "cut", 2)
    whole = (shorter / "model.safetensors").read_bytes()
    (shorter / "model.safetensors").write_bytes(whole[:-100])
    fault = await operator.refused("LoadModel", name="cut", source="cut", options=LOAD)
    assert fault.reason == errors_pb2.ERROR_REASON_MODEL_REFUSED
    assert "cut off" in fault.message


async def test_what_only_vllm_finds_wrong_is_said_and_its_process_is_gone(
    operator: Operator,
) -> None:
    shorter = write_shorter_model(MODEL, operator.root / "strange", 2)
    config = json.loads((shorter / "config.json").read_text())
    config["intermediate_size"] += 64
    (shorter / "config.json").write_text(json.dumps(config))
    stream = await Stream(operator, model=NAME, tokens=450, text="Count the rivers.").begun()
    fault = await operator.refused("LoadModel", name="strange", source="strange", options=LOAD)
    assert fault.reason == errors_pb2.ERROR_REASON_MODEL_REFUSED
    assert "Engine core initialization failed" not in fault.message
    assert "shape" in fault.message or "size" in fault.message
    assert (await stream.whole()).finish_reason == pb.FINISH_REASON_LENGTH
    assert await operator.listed() == [NAME]


def processes() -> set[int]:
    """Those that models are computed in."""
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


@pytest.mark.parametrize("ends", ["its process is killed", "its operator leaves"])
async def test_a_load_that_ends_halfway_leaves_nothing_behind_and_what_runs_alone(
    operator: Operator, ends: str
) -> None:
    if not (operator.root / "half").exists():
        write_shorter_model(MODEL, operator.root / "half", 2)
    before = processes()
    stream = await Stream(operator, model=NAME, tokens=450, text="Name the seas.").begun()
    steps: list[Any] = []
    call = operator.begin_load("half", "half", options=LOAD)

    async def load() -> None:
        async for step in call:
            steps.append(step)

    loading = asyncio.create_task(load())
    await soon(lambda: processes() > before or loading.done(), operator.patience)
    assert not loading.done()
    if ends == "its process is killed":
        for pid in processes() - before:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await loading
        fault = fault_from_rpc_error(failed.value)
        assert fault.reason == errors_pb2.ERROR_REASON_MODEL_REFUSED
    else:
        call.cancel()
        await asyncio.wait({loading})
        await soon(lambda: processes() == before, operator.patience)
    assert (await stream.whole()).finish_reason == pb.FINISH_REASON_LENGTH
    assert await operator.listed() == [NAME]
    assert processes() == before

    async def free() -> bool:
        fault = await operator.refused("LoadModel", name="half", source="missing")
        return fault.reason == errors_pb2.ERROR_REASON_NOT_FOUND

    await until(free, operator.patience)


async def test_a_swap_under_load_loses_no_stream(operator: Operator) -> None:
    write_shorter_model(MODEL, operator.root / "short", 4)
    before = await tokens(operator, NAME)
    lost: list[Any] = []
    answered = {"old": 0, "new": 0}
    over = asyncio.Event()

    async def caller(number: int) -> None:
        while not over.is_set():
            stream = Stream(operator, model=NAME, tokens=40, text=f"Tell me of river {number}.")
            last = await stream.whole()
            if last.finish_reason != pb.FINISH_REASON_LENGTH or len(stream.tokens) != 40:
                lost.append(last)
            answered["new" if swapped.is_set() else "old"] += 1

    swapped = asyncio.Event()
    callers = [asyncio.create_task(caller(number)) for number in range(4)]
    phases = []
    async for step in operator.begin_load(NAME, "short", options=LOAD):
        phases.append(step.phase)
        if step.phase == model_admin_pb2.LoadModelResponse.PHASE_SERVING:
            swapped.set()
    over.set()
    await asyncio.gather(*callers)
    assert not lost
    assert phases[-1] == model_admin_pb2.LoadModelResponse.PHASE_DONE
    assert answered["old"] > 0
    after = await tokens(operator, NAME)
    assert after != before
