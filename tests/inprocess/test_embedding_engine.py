"""Embeddings of real models, through a router: against transformers' own arithmetic."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from anabranch.v1 import errors_pb2, model_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.channels import open_channel
from services.chassis.errors import Fault, fault_from_rpc_error
from services.local_engine import app as engine_app
from services.local_engine.engine import EmbedJob, SamplingSpec
from services.local_engine.on_vllm.engine import VllmEngine
from services.local_engine.settings import Settings
from tests.support.auth import bearer, until
from tests.support.engines import MODEL, run_job
from tests.support.inprocess import Cluster, cluster, model_stub
from tests.support.waiting import BOUND_S

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
]

SENTENCES = MODEL.parent / "all-minilm-l6-v2"
CONTEXT = 128
TEXTS = [
    "A cat is lying in the sun.",
    "The kitten sleeps on the warm windowsill.",
    "Quarterly revenue of the bank rose by four percent.",
    "Ein Fluss mündet ins Meer. 日本",
    "x",
]


@dataclass
class Scene:
    """A router before one engine that embeds."""

    path: Path
    vllm: VllmEngine
    router: Any
    engine: Any
    auth: Any

    @property
    def many(self) -> list[str]:
        """Texts that take this model a while."""
        return ["a long text " * (30 if self.path == SENTENCES else 4)] * 200

    async def embed(self, texts: Sequence[str], **more: Any) -> model_pb2.EmbedResponse:
        asked = model_pb2.EmbedRequest(model="vectors", inputs=texts, **more)
        answer: model_pb2.EmbedResponse = await self.router.Embed(
            asked, metadata=self.auth, timeout=BOUND_S
        )
        return answer

    async def works(self) -> bool:
        """Whether vLLM has a good many texts."""
        return len(self.vllm._loaded.llm.output_processor.request_states) > 8

    async def until_idle(self) -> None:
        """Waits until vLLM has nothing of ours, and nothing is counted as running."""

        async def idle() -> bool:
            load = self.vllm.load()
            inside = self.vllm._loaded.llm.output_processor.request_states
            return not (load.running or load.waiting or inside)

        await until(idle)


@asynccontextmanager
async def joined(s: Cluster, path: Path) -> AsyncIterator[VllmEngine]:
    """An engine of the cluster that embeds with a real model."""
    settings = Settings(
        **s.common("engine-embeds"),
        model=str(path),
        task="embed",
        served_model_name="vectors",
        max_model_len=CONTEXT,
        max_waiting=300,
        max_num_seqs=32,
        cpu_kv_cache_gib=1,
    )
    engine = engine_app.make_engine(settings)
    assert isinstance(engine, VllmEngine)
    async with engine_app.running(settings, engine=engine):
        yield engine


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sentences", "converted"])
async def scene(request, tmp_path_factory):
    path = {"sentences": SENTENCES, "converted": MODEL}[request.param]
    if not path.is_dir():
        pytest.skip("no model: run tools/fetch_model.py and tools/fetch_embedding_model.py")
    directory = tmp_path_factory.mktemp("embeds")
    async with cluster(directory, engines=()) as s, joined(s, path) as vllm:
        await s.backends_ready(1)
        secret = await s.new_client("web", "generate", "relay")
        auth = bearer(await s.token("web", secret))
        assert s.router is not None
        (backend,) = await s.backends()
        async with s.channel(s.router) as router, open_channel(backend.address) as direct:
            yield Scene(path, vllm, model_stub(router), model_stub(direct), auth)


def expected(path: Path, texts: Sequence[str]) -> list[list[float]]:
    """Each text's vector by transformers alone: of the mean of all tokens for the sentence model,
    of the last token for a generating one; of length one."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    vectors = []
    with torch.inference_mode():
        for text in texts:
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            pooled = hidden.mean(dim=0) if path == SENTENCES else hidden[-1]
            vectors.append(torch.nn.functional.normalize(pooled, dim=0).tolist())
    return vectors


def dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_vectors_are_those_of_the_model_in_the_order_of_the_texts(scene):
    answer = await scene.embed(TEXTS)
    vectors = [list(embedding.values) for embedding in answer.embeddings]
    wanted = expected(scene.path, TEXTS)
    assert len(vectors) == len(wanted)
    for found, right in zip(vectors, wanted, strict=True):
        assert found == pytest.approx(right, abs=2e-4)
        assert dot(found, found) == pytest.approx(1.0, abs=1e-4)
        assert all(map(math.isfinite, found))


async def test_the_tokens_of_all_texts_are_counted(scene):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(scene.path)
    answer = await scene.embed(TEXTS)
    assert answer.usage.prompt_tokens == sum(len(tokenizer(text).input_ids) for text in TEXTS)
    assert answer.usage.completion_tokens == 0
    assert answer.usage.source == pb.Usage.SOURCE_PROVIDER


async def test_what_means_alike_lies_near(scene):
    if scene.path != SENTENCES:
        pytest.skip("a generating model was not trained for this")
    cat, kitten, finance, *_ = (list(e.values) for e in (await scene.embed(TEXTS)).embeddings)
    assert dot(cat, kitten) > dot(cat, finance) + 0.3


async def test_as_many_texts_as_the_contract_allows_come_back_in_order(scene):
    texts = [f"number {n}" for n in range(256)]
    answer = await scene.embed(texts)
    assert len(answer.embeddings) == 256
    alone = await scene.embed([texts[200]])
    assert list(answer.embeddings[200].values) == pytest.approx(
        list(alone.embeddings[0].values), abs=2e-4
    )


async def test_a_text_beyond_the_context_is_named_by_its_index(scene):
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await scene.embed(["short", "word " * 500])
    fault = fault_from_rpc_error(failed.value)
    assert fault.code is grpc.StatusCode.OUT_OF_RANGE
    assert fault.reason == errors_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED
    assert fault.metadata["index"] == "1"
    assert fault.metadata["context_length"] == str(CONTEXT)


async def test_a_model_that_was_not_trained_for_shorter_vectors_makes_none(scene):
    size = len((await scene.embed(["x"])).embeddings[0].values)
    assert len((await scene.embed(["x"], dimensions=size)).embeddings[0].values) == size
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await scene.embed(["x"], dimensions=size // 2)
    fault = fault_from_rpc_error(failed.value)
    assert fault.reason == errors_pb2.ERROR_REASON_UNSUPPORTED
    assert fault.metadata["feature"] == "dimensions"


async def test_a_caller_that_leaves_takes_its_texts_back(scene):
    await scene.until_idle()
    asked = model_pb2.EmbedRequest(model="vectors", inputs=scene.many)
    call = scene.engine.Embed(asked, metadata=scene.auth, timeout=BOUND_S)
    await until(scene.works)
    call.cancel()
    await scene.until_idle()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await scene.embed(["after"])).embeddings


async def test_a_deadline_takes_texts_back_too(scene):
    asked = model_pb2.EmbedRequest(model="vectors", inputs=scene.many)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await scene.engine.Embed(asked, metadata=scene.auth, timeout=0.2)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await scene.until_idle()


async def test_texts_of_all_callers_are_bounded_together(scene):
    asked = model_pb2.EmbedRequest(model="vectors", inputs=scene.many)
    first = scene.engine.Embed(asked, metadata=scene.auth, timeout=BOUND_S)
    await until(scene.works)
    others = [scene.engine.Embed(asked, metadata=scene.auth, timeout=BOUND_S) for _ in range(2)]
    refused = await asyncio.gather(*others, return_exceptions=True)
    assert len((await first).embeddings) == 200
    for error in refused:
        fault = fault_from_rpc_error(error)
        assert fault.reason == errors_pb2.ERROR_REASON_OVERLOADED
        assert fault.retry_after
    await scene.until_idle()


async def test_a_model_that_embeds_says_so_and_generates_nothing(scene):
    listed = await scene.router.ListModels(model_pb2.ListModelsRequest(), metadata=scene.auth)
    (model,) = listed.models
    assert list(model.capabilities) == [pb.CAPABILITY_EMBED]
    asked = pb.GenerateRequest(model="vectors", prompt="Once upon a time")
    for stub in (scene.router, scene.engine):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.Generate(asked, metadata=scene.auth, timeout=BOUND_S)
        fault = fault_from_rpc_error(failed.value)
        assert fault.code is grpc.StatusCode.UNIMPLEMENTED
        assert fault.metadata["feature"] == "generate"


async def test_an_engine_that_is_asked_whether_it_works_says_so(scene):
    prompt = await scene.vllm.encode_text("Are you there?")
    answer = await run_job(scene.vllm, prompt, SamplingSpec(max_tokens=1))
    assert (answer.tokens(), answer.usage.prompt) == ([], len(prompt))
    await scene.until_idle()


async def test_an_engine_that_is_given_up_fails_texts_at_once(scene):
    """Last: this engine embeds nothing more."""
    embedder = scene.vllm._loaded.embedder
    asked = model_pb2.EmbedRequest(model="vectors", inputs=scene.many)
    call = scene.engine.Embed(asked, metadata=scene.auth, timeout=BOUND_S)
    await until(scene.works)
    scene.vllm.give_up("given up by a test")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    fault = fault_from_rpc_error(failed.value)
    assert (fault.reason, fault.message) == (
        errors_pb2.ERROR_REASON_BACKEND_LOST,
        "given up by a test",
    )
    with pytest.raises(Fault, match="given up by a test"):
        await embedder.embed(EmbedJob("late", ["x"]))
