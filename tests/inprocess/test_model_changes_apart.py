"""What happens to one model of an engine process keeps nobody from another, nor what fails halfway.

Beside test_models_at_run_time.py, which shows the changes themselves; with simulated engines.
"""

from __future__ import annotations

import grpc
import pytest

from anabranch.v1 import errors_pb2
from services.chassis.errors import fault_from_rpc_error
from tests.inprocess.test_models_at_run_time import Stream, operated, soon


@pytest.mark.parametrize("bound", [{"max_waiting": 1}, {"max_waiting_tokens": 600}])
async def test_a_busy_model_keeps_nobody_from_an_idle_one(tmp_path, bound):
    async with operated(tmp_path, max_num_seqs=1, **bound) as operator:
        await operator.load("lake", "lake")
        runs = await Stream(operator, prompt="x").begun()
        waits = Stream(operator, prompt="x" * 900)
        service = operator.caller.host.model_service
        assert service is not None
        await soon(lambda: service._handler.load().waiting == 1)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await operator.caller.generate(prompt="more")
        assert fault_from_rpc_error(failed.value).reason == errors_pb2.ERROR_REASON_OVERLOADED
        answer = await operator.caller.generate(model="lake", prompt="more")
        assert answer.usage.completion_tokens == 16
        for stream in (runs, waits):
            await stream.cancel()
