"""A real vLLM whose engine core is killed in the middle of several streams."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import suppress

import aiohttp
import grpc
import pytest

from anabranch.v1 import errors_pb2, model_pb2_grpc, session_pb2
from services.chassis.channels import open_channel
from services.chassis.errors import Fault, fault_from_rpc_error, fault_from_status
from tests.support.auth import bearer
from tests.support.engine_process import asked, engine_process, rest, stream, until_loaded
from tests.support.health import http_answers
from tests.support.waiting import BOUND_S

pytestmark = [pytest.mark.cluster, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

DRAIN_S = 600
"""Far above what the process may take to end: nothing is left to drain."""


async def until_ready_no_more(http: str) -> None:
    """Waits for the first probe that says no; one that reaches nobody says so too."""
    with suppress(aiohttp.ClientError):
        async with asyncio.timeout(BOUND_S):
            while (await http_answers(http))[1]:
                await asyncio.sleep(0.01)


async def test_a_killed_engine_core_ends_every_stream_with_its_count_and_then_the_process(tmp_path):
    async with (
        engine_process(tmp_path, DRAIN_TIMEOUT=str(DRAIN_S)) as (found, token),
        open_channel(found.probes) as probes,
        open_channel(found.address) as channel,
    ):
        await until_loaded(found, probes)
        # Two in a session, two calls of their own, and two that wait: four run at once.
        session = model_pb2_grpc.ModelServiceStub(channel).Session(metadata=bearer(token))
        frames = [session_pb2.SessionRequestFrame(stream=n, start=asked(1500)) for n in (1, 2)]
        await session.write(session_pb2.SessionRequest(frames=frames))
        calls = [stream(channel, token, 1500) for _ in range(2)]
        for call in calls:
            await call.read()
        begun: set[int] = set()
        while begun != {1, 2}:
            begun |= {f.stream for f in (await session.read()).frames if f.chunk.token_ids}
        calls += [stream(channel, token, 1500) for _ in range(2)]
        await asyncio.sleep(0.5)  # for these to reach the engine; it decides nothing

        async def of_call(call: object) -> Fault:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await rest(call)
            return fault_from_rpc_error(failed.value)

        async def of_session() -> list[Fault]:
            ended: dict[int, Fault] = {}
            while len(ended) < 2:
                for frame in (await session.read()).frames:
                    if frame.HasField("error"):
                        ended[frame.stream] = fault_from_status(frame.error)
            return list(ended.values())

        core = found.core
        core.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        async with asyncio.timeout(BOUND_S):
            alone, together = await asyncio.gather(
                asyncio.gather(*map(of_call, calls)), of_session()
            )
            streams_s = time.monotonic() - killed
            await until_ready_no_more(found.http)
            assert await found.process.wait() == 1
            process_s = time.monotonic() - killed
            print(f"the streams ended after {streams_s:.2f} s, the process after {process_s:.2f}")
        faults: list[Fault] = [*alone, *together]
        assert len(faults) == 6
        for fault in faults:
            assert fault.code is grpc.StatusCode.UNAVAILABLE
            assert fault.reason == errors_pb2.ERROR_REASON_BACKEND_LOST
        counts = [int(fault.metadata["tokens_delivered"]) for fault in faults]
        assert sorted(count > 0 for count in counts) == [False] * 2 + [True] * 4
        assert not core.is_running()
        assert await found.consul_says() == "gone"
    assert found.log.read_text().count("engine lost") == 1
