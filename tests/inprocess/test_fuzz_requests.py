"""Requests of every shape that the contract allows, through a live channel: all are answered or
refused in our own words."""

import asyncio
from typing import Any

import grpc
import pytest_asyncio
from google.protobuf.descriptor import FieldDescriptor
from google.rpc import error_details_pb2, status_pb2
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from tests.support.auth import bearer
from tests.support.inprocess import MODEL, cluster, model_stub
from tests.support.waiting import BOUND_S

OK = grpc.StatusCode.OK
BATCH = 6
EXAMPLES = 50
"""Batches of requests that are sent at once, two thirds to Generate, the rest to CountTokens."""

_INT32 = st.one_of(st.integers(-2, 20), st.sampled_from([-(2**31), 2**31 - 1]))
_INT64 = st.one_of(st.integers(-2, 20), st.sampled_from([-(2**63), 2**63 - 1]))
_UINT64 = st.one_of(st.integers(0, 20), st.sampled_from([2**32 - 1]))
_FLOAT = st.one_of(st.floats(0, 2, width=32), st.floats(width=32))
_TEXT = st.one_of(st.text(max_size=8), st.sampled_from(["", "{}", "\0", "x" * 5000, "(a+)+$"]))
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: _TEXT,
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=16),
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_UINT32: _UINT64,
    FieldDescriptor.TYPE_UINT64: _UINT64,
    FieldDescriptor.TYPE_FLOAT: _FLOAT,
    FieldDescriptor.TYPE_DOUBLE: _FLOAT,
}


@st.composite
def messages(draw: st.DrawFn, kind: type[Any], depth: int = 3) -> Any:
    """Any message of a type: a few of its fields, each of them any value or an awkward one."""
    message = kind()
    names = [field.name for field in kind.DESCRIPTOR.fields]
    for name in sorted(draw(st.sets(st.sampled_from(names), max_size=4)) if names else ()):
        fill(draw, message, kind.DESCRIPTOR.fields_by_name[name], depth)
    return message


def fill(draw: st.DrawFn, message: Any, field: Any, depth: int) -> None:
    here = getattr(message, field.name)
    count = draw(st.integers(1, 2))
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        here.update(draw(st.dictionaries(_TEXT, _TEXT, max_size=2)))
    elif field.message_type is not None:
        if depth:
            inner = type(here.add() if field.is_repeated else here)
            made = [draw(messages(inner, depth - 1)) for _ in range(count)]
            if field.is_repeated:
                here.extend(made)
            else:
                here.CopyFrom(made[0])
                here.SetInParent()
    else:
        values = (
            st.one_of(st.sampled_from([v.number for v in field.enum_type.values]), st.just(99))
            if field.enum_type is not None
            else _SCALARS[field.type]
        )
        if field.is_repeated:
            here.extend(draw(values) for _ in range(count))
        else:
            setattr(message, field.name, draw(values))


@st.composite
def requests(draw: st.DrawFn) -> pb.GenerateRequest:
    """Any GenerateRequest; half of them are good but for what was drawn."""
    drawn = draw(messages(pb.GenerateRequest))
    request = pb.GenerateRequest()
    if draw(st.booleans()):
        request.model, request.prompt = MODEL, "hello"
        request.sampling.max_tokens = 2
        drawn.ClearField("model")
        drawn.ClearField("prompt")
    request.MergeFrom(drawn)
    # What is asked for well is also done: keep it short.
    request.timeout.FromMilliseconds(2000)
    if draw(st.booleans()):
        request.timeout.CopyFrom(drawn.timeout)
    return request


class Door:
    def __init__(self, stub: Any, auth: Any) -> None:
        self.stub = stub
        self.auth = auth
        self.codes: set[grpc.StatusCode] = set()

    async def try_all(self, batch: list[pb.GenerateRequest]) -> None:
        async with asyncio.timeout(BOUND_S):
            await asyncio.gather(*(self._try(n, request) for n, request in enumerate(batch)))

    async def _try(self, number: int, request: pb.GenerateRequest) -> None:
        if number % 3 == 2:
            counted = model_pb2.CountTokensRequest(model=request.model, request=request)
            call = self.stub.CountTokens(counted, metadata=self.auth, timeout=BOUND_S)
        else:
            call = self.stub.Generate(request, metadata=self.auth, timeout=BOUND_S)
        await self._see(call, request)

    async def judge_all(self, batch: list[model_pb2.FeedbackRequest]) -> None:
        async with asyncio.timeout(BOUND_S):
            await asyncio.gather(*map(self._judge, batch))

    async def _judge(self, request: model_pb2.FeedbackRequest) -> None:
        call = self.stub.Feedback(request, metadata=self.auth, timeout=BOUND_S)
        await self._see(call, request)

    async def _see(self, call: Any, request: Any) -> None:
        code = await call.code()
        self.codes.add(code)
        assert code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL), request
        assert error_infos(await call.trailing_metadata()) == (code is not OK), (code, request)


def error_infos(trailers: Any) -> int:
    raw = dict(trailers or ()).get("grpc-status-details-bin", b"")
    details = status_pb2.Status.FromString(raw).details
    return sum(detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) for detail in details)


@pytest_asyncio.fixture
async def door(tmp_path):
    async with cluster(tmp_path, engines=({"sim_speed": 0},)) as running:
        secret = await running.new_client("shop", "generate")
        token = await running.token("shop", secret)
        assert running.router is not None
        async with running.channel(running.router) as channel:
            yield Door(model_stub(channel), bearer(token))


async def test_every_shape_of_request_is_answered_or_refused_in_our_words(door):
    loop = asyncio.get_running_loop()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(requests(), min_size=BATCH, max_size=BATCH))
    def send(batch: list[pb.GenerateRequest]) -> None:
        asyncio.run_coroutine_threadsafe(door.try_all(batch), loop).result(2 * BOUND_S)

    # Hypothesis calls what it tests, it does not await it.
    await asyncio.to_thread(send)
    assert {OK, grpc.StatusCode.INVALID_ARGUMENT} <= door.codes


async def test_every_shape_of_feedback_is_refused_in_our_words(door):
    loop = asyncio.get_running_loop()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(messages(model_pb2.FeedbackRequest), min_size=BATCH, max_size=BATCH))
    def send(batch: list[model_pb2.FeedbackRequest]) -> None:
        asyncio.run_coroutine_threadsafe(door.judge_all(batch), loop).result(2 * BOUND_S)

    await asyncio.to_thread(send)
    assert door.codes == {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
