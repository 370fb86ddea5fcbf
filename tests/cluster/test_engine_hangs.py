"""A real vLLM whose engine core stops in the middle of a stream, seen by probes and by Consul.

The core is a process of its own: with SIGSTOP it does what a stuck device makes it do. Its port
stays open all the while, and the process that has the port answers.
"""

from __future__ import annotations

import asyncio
import signal

import grpc
import pytest

from anabranch.v1 import errors_pb2
from services.chassis.channels import open_channel
from services.chassis.errors import fault_from_rpc_error
from tests.support.engine_process import engine_process, rest, stream, until_loaded
from tests.support.health import http_answers, reason, until_answers
from tests.support.waiting import BOUND_S

pytestmark = [pytest.mark.cluster, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

YES, NO = True, False
# Between the two the test looks around; a step on a busy machine stays well below the first.
HANG_AFTER, HANG_EXIT = "5.0", "40.0"


async def test_a_stopped_engine_core_is_found_told_forgiven_and_in_the_end_given_up(tmp_path):
    async with (
        engine_process(tmp_path, HANG_AFTER=HANG_AFTER, HANG_EXIT=HANG_EXIT) as (found, token),
        open_channel(found.probes) as probes,
        open_channel(found.address) as channel,
    ):
        heard = await until_loaded(found, probes)
        # Loading and warming up were neither started nor ready, and never dead.
        assert heard[0] == (NO, NO, YES)
        assert all(live for _, _, live in heard)
        await found.until_consul_says("passing")

        # It stops in the middle of a stream, and goes on.
        call = stream(channel, token, 600)
        first = await call.read()
        core = found.core
        core.send_signal(signal.SIGSTOP)
        await until_answers(probes, YES, NO, NO)
        assert await http_answers(found.http) == (YES, NO, NO)
        assert "no step" in await reason(found.http, "/livez")
        await found.until_consul_says("critical")
        _, writer = await asyncio.open_connection(*found.address.split(":"))
        writer.close()
        core.send_signal(signal.SIGCONT)
        await until_answers(probes, YES, YES, YES)
        await found.until_consul_says("passing")
        last = (await rest(call))[-1]
        assert last.usage.completion_tokens == 600
        assert first.first_token == 0

        # It stops for good: the one status says how far the stream came, and the process ends.
        call = stream(channel, token, 1500)
        await call.read()
        core.send_signal(signal.SIGSTOP)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await rest(call)
        fault = fault_from_rpc_error(failed.value)
        assert fault.code is grpc.StatusCode.UNAVAILABLE
        assert fault.reason == errors_pb2.ERROR_REASON_BACKEND_LOST
        assert "no step" in fault.message
        assert int(fault.metadata["tokens_delivered"]) > 0
        async with asyncio.timeout(2 * BOUND_S):
            assert await found.process.wait() == 1
        assert not core.is_running()
        assert await found.consul_says() == "gone"
    log = found.log.read_text()
    assert log.count("the engine hangs") == 2
    assert log.count("the engine works again") == 1
    assert log.count("engine given up") == 1
