"""Callers that stop reading answers that never end: what they cost, and that others go on."""

import asyncio
import gc

import grpc
import pytest

from anabranch.v1 import errors_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import fault_from_rpc_error
from services.chassis.model_streams import StreamLimits
from services.chassis.plain_calls import _Stream
from services.chassis.session_output import SessionOutput
from tests.support.auth import bearer
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub

ENDLESS = 30_000
"""Tokens of an answer that no test waits for."""
BOUND = StreamLimits().stream_buffer_bytes
CHUNK = 4_096
"""More than one token's chunk ever has here."""
OTHERS = 400
"""Tokens that another caller takes while somebody does not read."""


def ask(tokens: int, *, logprobs: int | None = None) -> pb.GenerateRequest:
    """`logprobs` makes chunks that joining does not shrink: they fill what there is to fill."""
    request = pb.GenerateRequest(model=MODEL, prompt="who reads this?")
    request.sampling.max_tokens = tokens
    request.sampling.ignore_eos = True
    if logprobs is not None:
        request.sampling.logprobs = logprobs
    return request


@pytest.fixture
async def endless(tmp_path):
    engine = {"sim_speed": 0.0, "sim_kv_tokens": 10_000_000}
    async with cluster(tmp_path, engines=(engine,)) as running:
        yield running


async def caller(running: Cluster, name: str):
    return bearer(
        await running.token(name, await running.new_client(name, "generate", tenant=name))
    )


async def take_streamed(stub, auth) -> int:
    """A whole answer of another caller; its tokens, in order."""
    seen = 0
    call = stub.StreamGenerate(ask(OTHERS), metadata=auth)
    while (chunk := await call.read()) is not grpc.aio.EOF:
        assert chunk.first_token == seen
        seen += len(chunk.token_ids)
    return seen


async def take_in_session(stub, auth, streams: int = 2) -> list[int]:
    call = stub.Session(metadata=auth)
    await call.read()
    frames = [
        session_pb2.SessionRequestFrame(stream=n + 1, start=ask(OTHERS)) for n in range(streams)
    ]
    await call.write(session_pb2.SessionRequest(frames=frames))
    seen, over = [0] * streams, 0
    while over < streams:
        message = await call.read()
        for frame in message.frames:
            seen[frame.stream - 1] += len(frame.chunk.token_ids)
            over += frame.last
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    return seen


def held(kind: type) -> list[int]:
    """Bytes that each outlet of the kind in this process holds, router and engine alike."""
    found = [thing for thing in gc.get_objects() if type(thing) is kind]
    return [o.held for o in found]


async def test_plain_callers_that_do_not_read_cost_their_bound_and_hold_up_nobody(
    endless: Cluster,
):
    idle, busy = await caller(endless, "idle"), await caller(endless, "busy")
    async with (
        endless.channel(endless.router) as idle_channel,
        endless.channel(endless.router) as busy_channel,
    ):
        stalled = [
            model_stub(idle_channel).StreamGenerate(ask(ENDLESS, logprobs=20), metadata=idle)
            for _ in range(6)
        ]
        assert await take_streamed(model_stub(busy_channel), busy) == OTHERS
        assert await take_in_session(model_stub(busy_channel), busy) == [OTHERS] * 2
        most = max(held(_Stream), default=0)
        while len(endless.router.model_service.requests):  # until each was cut
            most = max(most, *held(_Stream), 0)
            await asyncio.sleep(0.02)
        assert 0 < most <= BOUND + CHUNK
        for call in stalled:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                while await call.read() is not grpc.aio.EOF:
                    pass
            fault = fault_from_rpc_error(caught.value)
            assert fault.reason == errors_pb2.ERROR_REASON_SLOW_READER
        assert await take_streamed(model_stub(busy_channel), busy) == OTHERS


async def test_a_session_that_is_not_read_costs_its_answers_length_and_holds_up_nobody(
    endless: Cluster,
):
    streams = 12
    endless.lets_callers_pause()
    idle, busy = await caller(endless, "idle"), await caller(endless, "busy")
    async with (
        endless.channel(endless.router) as idle_channel,
        endless.channel(endless.router) as busy_channel,
    ):
        call = model_stub(idle_channel).Session(metadata=idle)
        await call.read()
        frames = [
            session_pb2.SessionRequestFrame(stream=n + 1, start=ask(ENDLESS))
            for n in range(streams)
        ]
        await call.write(session_pb2.SessionRequest(frames=frames))
        assert await take_in_session(model_stub(busy_channel), busy) == [OTHERS] * 2
        assert await take_streamed(model_stub(busy_channel), busy) == OTHERS
        assert max(held(SessionOutput)) <= streams * BOUND
        (backend,) = await endless.backends()
        assert backend.in_flight == streams, "a caller behind is not yet one that has stalled"
        call.cancel()
        while len(endless.router.model_service.requests):
            await asyncio.sleep(0.02)
