"""A caller of a session that stops reading for a while: it misses nothing and slows nobody."""

import grpc
import pytest

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import session_pb2
from tests.support.auth import bearer, until
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub

TOKENS = 1500


def start(stream: int, tokens: int = TOKENS) -> session_pb2.SessionRequestFrame:
    request = pb.GenerateRequest(model=MODEL, prompt=f"question {stream}")
    request.sampling.max_tokens = tokens
    request.sampling.ignore_eos = True
    return session_pb2.SessionRequestFrame(stream=stream, start=request)


async def collect(call, streams: int) -> tuple[dict[int, list[int]], int]:
    """Every stream's tokens, checked for order, and the number of frames that brought them."""
    tokens: dict[int, list[int]] = {n: [] for n in range(1, streams + 1)}
    ended, frames = 0, 0
    while ended < streams:
        message = await call.read()
        assert message is not grpc.aio.EOF
        for frame in message.frames:
            assert not frame.HasField("error"), frame.error
            assert frame.tokens == len(frame.chunk.token_ids)
            if frame.chunk.token_ids:
                assert frame.chunk.first_token == len(tokens[frame.stream])
            tokens[frame.stream] += frame.chunk.token_ids
            frames += 1
            if frame.last:
                ended += 1
                assert frame.chunk.finish_reason == pb.FINISH_REASON_LENGTH
                assert frame.chunk.usage.completion_tokens == TOKENS
                assert frame.chunk.receipt.backend_id
    return tokens, frames


@pytest.fixture
async def fast_engine(tmp_path):
    async with cluster(tmp_path, engines=({"sim_speed": 30.0},)) as running:
        yield running


@pytest.mark.slow
async def test_a_caller_that_pauses_misses_nothing_and_gets_it_in_few_frames(
    fast_engine: Cluster,
):
    streams = 40
    fast_engine.lets_callers_pause()
    token = await fast_engine.token("shop", await fast_engine.new_client("shop", "generate"))
    async with fast_engine.channel(fast_engine.router) as channel:
        call = model_stub(channel).Session(metadata=bearer(token))
        await call.read()
        await call.write(session_pb2.SessionRequest(frames=[start(n + 1) for n in range(streams)]))

        # Nothing is read until the engine has finished every answer.
        async def all_are_over() -> bool:
            (backend,) = await fast_engine.backends()
            return backend.in_flight == 0 and backend.load.starts_seen == streams

        await until(all_are_over)
        tokens, frames = await collect(call, streams)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    assert {len(ids) for ids in tokens.values()} == {TOKENS}
    assert frames < streams * TOKENS / 2, "what waited was joined"


@pytest.mark.slow
async def test_a_paused_caller_does_not_hold_up_another(fast_engine: Cluster):
    fast_engine.lets_callers_pause()
    token = await fast_engine.token("shop", await fast_engine.new_client("shop", "generate"))
    async with (
        fast_engine.channel(fast_engine.router) as idle_channel,
        fast_engine.channel(fast_engine.router) as busy_channel,
    ):
        paused = model_stub(idle_channel).Session(metadata=bearer(token))
        await paused.read()
        await paused.write(session_pb2.SessionRequest(frames=[start(n + 1) for n in range(40)]))
        call = model_stub(busy_channel).Session(metadata=bearer(token))
        await call.read()
        await call.write(session_pb2.SessionRequest(frames=[start(1), start(2)]))
        tokens, _ = await collect(call, 2)
        assert {len(ids) for ids in tokens.values()} == {TOKENS}
        paused.cancel()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
