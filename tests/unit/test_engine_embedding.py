"""Sizes of vectors, and how many texts are taken: without a model."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from opentelemetry.metrics import NoOpMeter

from anabranch.v1 import errors_pb2, model_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.local_engine.embedding import EmbedDesk
from services.local_engine.engine import Embeddings, EmbedJob, ModelFacts
from services.local_engine.engine_metrics import EngineMetrics
from services.local_engine.on_vllm.embedder import VectorSizes


@pytest.mark.parametrize(
    ("sizes", "wanted", "asked"),
    [
        (VectorSizes(384), None, None),
        (VectorSizes(384), 384, None),
        (VectorSizes(768, shortens=True), 256, 256),
        (VectorSizes(768, shortens=True), 768, None),
        (VectorSizes(768, shortens=True, listed=(128, 256)), 128, 128),
        (VectorSizes(768, shortens=True, listed=(128, 256)), 768, None),
    ],
)
def test_a_vector_is_shortened_where_the_model_was_trained_for_it(sizes, wanted, asked):
    assert sizes.check(wanted) == asked


@pytest.mark.parametrize(
    ("sizes", "wanted", "reason"),
    [
        (VectorSizes(384), 128, errors_pb2.ERROR_REASON_UNSUPPORTED),
        (VectorSizes(384), 385, errors_pb2.ERROR_REASON_UNSUPPORTED),
        (VectorSizes(768, shortens=True), 769, errors_pb2.ERROR_REASON_INVALID_REQUEST),
        (
            VectorSizes(768, shortens=True, listed=(128, 256)),
            200,
            errors_pb2.ERROR_REASON_INVALID_REQUEST,
        ),
    ],
)
def test_other_sizes_are_refused(sizes, wanted, reason):
    with pytest.raises(Fault) as refused:
        sizes.check(wanted)
    assert refused.value.reason == reason


class Slow:
    """Embeds nothing before it may."""

    def __init__(self, size: int = 4) -> None:
        self.facts = ModelFacts("m", "m", 10, 1, (pb.CAPABILITY_EMBED,), vector_size=size)
        self.may = asyncio.Event()

    async def embed(self, job: EmbedJob) -> Embeddings:
        await self.may.wait()
        return Embeddings([[float(len(text))] * 4 for text in job.texts], 7)


def desk_of(most_texts: int = 10) -> EmbedDesk:
    metrics = EngineMetrics(NoOpMeter("test"))
    return EmbedDesk(metrics, most_texts=most_texts, max_message_bytes=4096)


def asked(count: int) -> model_pb2.EmbedRequest:
    return model_pb2.EmbedRequest(model="m", inputs=["x" * n for n in range(1, count + 1)])


CONTEXT: Any = type("Context", (), {"traceparent": ""})()


async def test_texts_beyond_those_that_fit_are_refused_and_room_comes_back():
    engine = Slow()
    desk = desk_of()
    first = asyncio.create_task(desk.embed(engine, asked(6), CONTEXT))
    gone = asyncio.create_task(desk.embed(engine, asked(4), CONTEXT))
    await asyncio.sleep(0)
    with pytest.raises(Fault) as refused:
        await desk.embed(engine, asked(1), CONTEXT)
    assert refused.value.reason == errors_pb2.ERROR_REASON_OVERLOADED
    gone.cancel()
    await asyncio.wait({gone})
    engine.may.set()
    assert len((await desk.embed(engine, asked(4), CONTEXT)).embeddings) == 4
    assert [e.values[0] for e in (await first).embeddings] == [1, 2, 3, 4, 5, 6]


async def test_texts_for_one_model_keep_nobody_from_another():
    busy, idle, desk = Slow(), Slow(), desk_of()
    first = asyncio.create_task(desk.embed(busy, asked(10), CONTEXT))
    await asyncio.sleep(0)
    idle.may.set()
    assert len((await desk.embed(idle, asked(4), CONTEXT)).embeddings) == 4
    busy.may.set()
    await first


async def test_a_request_that_comes_alone_is_taken_however_many_texts_it_has():
    engine = Slow()
    engine.may.set()
    answer = await desk_of(most_texts=2).embed(engine, asked(5), CONTEXT)
    assert answer.usage.prompt_tokens == 7
    assert answer.usage.source == pb.Usage.SOURCE_PROVIDER


async def test_vectors_that_would_fit_no_message_are_not_computed():
    with pytest.raises(Fault) as refused:
        await desk_of().embed(Slow(size=1000), asked(2), CONTEXT)
    assert refused.value.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
    assert "at most 1 fit" in refused.value.violations[0].description
