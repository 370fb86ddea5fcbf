"""What happens to one model of an engine process keeps nobody from another, nor what fails halfway.

Beside test_models_at_run_time.py, which shows the changes themselves; with simulated engines.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from anabranch.v1 import errors_pb2, model_admin_pb2, model_admin_pb2_grpc
from services.chassis.channels import open_channel
from services.chassis.errors import fault_from_rpc_error
from services.chassis.host import Host
from services.local_engine.abilities import Refused
from services.local_engine.app import EngineLost
from services.local_engine.roster import Roster
from services.local_engine.simulation.adapters import SimAdapters
from services.local_engine.simulation.engine import SimEngine
from tests.inprocess.test_models_at_run_time import MODEL_NAME, Operator, Stream, operated, soon
from tests.support.auth import bearer
from tests.support.local_keys import LocalKeys
from tests.support.waiting import BOUND_S, until
from tools.cluster.ports import free_port

ASLEEP = model_admin_pb2.SERVED_STATE_ASLEEP
SERVING = model_admin_pb2.SERVED_STATE_SERVING


class Gate:
    """A method that waits until it may go on; then it does what it did."""

    def __init__(self, method: Any) -> None:
        self.reached, self.open = asyncio.Event(), asyncio.Event()

        async def waits(*arguments: Any) -> Any:
            self.reached.set()
            await self.open.wait()
            return await method(*arguments)

        self.method = waits


def roster_of(operator: Operator) -> Roster:
    service = operator.caller.host.model_service
    assert service is not None
    return service._handler._roster


async def left(operator: Operator, gate: Gate, rpc: str, **fields: Any) -> None:
    """An operator asks for a change and leaves while the engine is at it."""
    asking = asyncio.create_task(operator.ask(rpc, **fields))
    async with asyncio.timeout(BOUND_S):
        await gate.reached.wait()
    asking.cancel()
    await asyncio.wait({asking})


async def comes_to(operator: Operator, name: str, state: int) -> None:
    async def is_so() -> bool:
        found = (await operator.served()).get(name)
        return found is not None and found.state == state

    await until(is_so)


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


async def test_a_model_that_falls_asleep_while_its_operator_leaves_is_asleep(tmp_path, monkeypatch):
    gate = Gate(SimEngine.sleep)
    monkeypatch.setattr(SimEngine, "sleep", gate.method)
    async with operated(tmp_path) as operator:
        await left(operator, gate, "Sleep", name=MODEL_NAME)
        busy = await operator.refused("LoadModel", name="lake", source="lake")
        assert busy.reason == errors_pb2.ERROR_REASON_IN_USE, "it is still at it"
        gate.open.set()
        await comes_to(operator, MODEL_NAME, ASLEEP)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await operator.caller.generate()
        fault = fault_from_rpc_error(failed.value)
        assert fault.reason == errors_pb2.ERROR_REASON_MODEL_ASLEEP
        await operator.ask("Wake", name=MODEL_NAME)
        assert (await operator.caller.generate()).usage.completion_tokens == 16


async def test_a_model_that_wakes_while_its_operator_leaves_serves(tmp_path, monkeypatch):
    gate = Gate(SimEngine.wake)
    monkeypatch.setattr(SimEngine, "wake", gate.method)
    async with operated(tmp_path) as operator:
        await operator.ask("Sleep", name=MODEL_NAME)
        await left(operator, gate, "Wake", name=MODEL_NAME)
        gate.open.set()
        await comes_to(operator, MODEL_NAME, SERVING)
        assert (await operator.caller.generate()).usage.completion_tokens == 16


async def test_an_operator_who_leaves_while_a_model_finishes_before_its_sleep_ends_the_sleep(
    tmp_path,
):
    async with operated(tmp_path) as operator:
        stream = await Stream(operator).begun()
        asking = asyncio.create_task(operator.ask("Sleep", name=MODEL_NAME))
        await soon(lambda: not roster_of(operator).names)
        asking.cancel()
        await comes_to(operator, MODEL_NAME, SERVING)
        await stream.begun()
        await stream.cancel()


async def test_a_sleep_or_a_wake_that_the_engine_refuses_says_why_and_leaves_it_as_it_was(
    tmp_path, monkeypatch
):
    async def refuses(*_: object) -> None:
        raise Refused("no room for 3 GiB")

    async with operated(tmp_path) as operator:
        with monkeypatch.context() as patch:
            patch.setattr(SimEngine, "sleep", refuses)
            fault = await operator.refused("Sleep", name=MODEL_NAME)
        assert fault.reason == errors_pb2.ERROR_REASON_MODEL_REFUSED
        assert "3 GiB" in fault.message
        assert (await operator.caller.generate()).usage.completion_tokens == 16
        await operator.ask("Sleep", name=MODEL_NAME)
        with monkeypatch.context() as patch:
            patch.setattr(SimEngine, "wake", refuses)
            fault = await operator.refused("Wake", name=MODEL_NAME)
        assert fault.reason == errors_pb2.ERROR_REASON_MODEL_REFUSED
        assert (await operator.served())[MODEL_NAME].state == ASLEEP
        await operator.ask("Wake", name=MODEL_NAME)
        assert (await operator.caller.generate()).usage.completion_tokens == 16


async def test_nothing_is_written_to_the_memory_of_a_sleeping_model(tmp_path, monkeypatch):
    touched: list[str] = []

    async def touches(_: SimAdapters, key: str, *__: object) -> None:
        touched.append(key)

    async with operated(tmp_path) as operator:
        await operator.ask("LoadAdapter", base=MODEL_NAME, name="d", source="dialect")
        await operator.ask("Sleep", name=MODEL_NAME)
        with monkeypatch.context() as patch:
            patch.setattr(SimAdapters, "load", touches)
            patch.setattr(SimAdapters, "unload", touches)
            for rpc, fields in (
                ("LoadAdapter", {"name": "e", "source": "dialect"}),
                ("UnloadAdapter", {"name": "d"}),
            ):
                fault = await operator.refused(rpc, base=MODEL_NAME, **fields)
                assert fault.reason == errors_pb2.ERROR_REASON_IN_USE
                assert "wake it first" in fault.message
        assert not touched
        assert await operator.listed() == []
        await operator.ask("Wake", name=MODEL_NAME)
        assert await operator.listed() == [MODEL_NAME, f"{MODEL_NAME}:d"]


async def test_an_adapter_whose_operator_leaves_is_served_and_can_be_unloaded(
    tmp_path, monkeypatch
):
    gate = Gate(SimAdapters.load)
    monkeypatch.setattr(SimAdapters, "load", gate.method)
    async with operated(tmp_path) as operator:
        await left(operator, gate, "LoadAdapter", base=MODEL_NAME, name="d", source="dialect")
        gate.open.set()
        await comes_to(operator, f"{MODEL_NAME}:d", SERVING)
        await operator.ask("UnloadAdapter", base=MODEL_NAME, name="d")
        (engine,) = roster_of(operator).engines
        assert isinstance(engine, SimEngine)
        assert engine.adapters is not None
        assert not engine.adapters.loaded


@pytest.mark.parametrize("names", [{"model_aliases": (f"{MODEL_NAME}:d",)}, {}])
async def test_an_adapter_takes_no_name_from_another_model(tmp_path, names):
    async with operated(tmp_path, **names) as operator:
        if not names:
            other = roster_of(operator).get(MODEL_NAME)
            assert other is not None
            # Only the settings may name a model so.
            await operator.load("lake", "lake")
            lake = roster_of(operator).get("lake")
            assert lake is not None
            roster_of(operator)._served[f"{MODEL_NAME}:d"] = lake
        fault = await operator.refused("LoadAdapter", base=MODEL_NAME, name="d", source="dialect")
        assert fault.reason == errors_pb2.ERROR_REASON_ALREADY_EXISTS


async def test_an_unload_keeps_the_turn_until_it_is_over_whoever_waits(tmp_path):
    async with operated(tmp_path) as operator:
        await operator.load("lake", "lake")
        stream = await Stream(operator, model="lake").begun()
        asking = asyncio.create_task(operator.ask("UnloadModel", name="lake"))
        await soon(lambda: "lake" not in roster_of(operator).names)
        asking.cancel()
        await asyncio.wait({asking})
        busy = await operator.refused("LoadModel", name="pond", source="lake")
        assert busy.reason == errors_pb2.ERROR_REASON_IN_USE
        await stream.begun()
        await stream.cancel()

        async def gone() -> bool:
            return set(await operator.served()) == {MODEL_NAME}

        await until(gone)
        await operator.load("pond", "lake")


async def test_an_engine_that_does_not_close_well_ends_nothing_else(tmp_path, monkeypatch):
    async with operated(tmp_path) as operator:
        await operator.load("lake", "lake")
        stream = await Stream(operator).begun()

        async def breaks(_: SimEngine) -> None:
            raise RuntimeError("its processes do not answer")

        with monkeypatch.context() as patch:
            patch.setattr(SimEngine, "close", breaks)
            await operator.ask("UnloadModel", name="lake")
            await operator.ask("ListServedModels")
        await stream.begun()
        await stream.cancel()


async def test_a_swap_keeps_the_names_that_it_does_not_replace(tmp_path):
    async with operated(tmp_path, model_aliases=("brook",)) as operator:
        await operator.load(MODEL_NAME, "lake")
        answer = await operator.caller.generate(model="brook", prompt_token_ids=[300])
        assert answer.usage.completion_tokens == 16
        await operator.load(MODEL_NAME, "lake", aliases=["stream"])
        assert (await operator.caller.generate(model="stream")).usage.completion_tokens == 16
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await operator.caller.generate(model="brook")
        assert fault_from_rpc_error(failed.value).reason == errors_pb2.ERROR_REASON_MODEL_NOT_FOUND


async def test_a_question_that_outlasts_the_drain_is_cut_off_as_lost(tmp_path, monkeypatch):
    gate = Gate(SimEngine.encode)
    async with operated(tmp_path) as operator:
        await operator.load("lake", "lake")
        monkeypatch.setattr(SimEngine, "encode", gate.method)
        counting = asyncio.create_task(operator.count("lake"))
        async with asyncio.timeout(BOUND_S):
            await gate.reached.wait()
        answer = await operator.ask("UnloadModel", name="lake", drain_timeout={"seconds": 0})
        assert answer.cut_off == 1
        async with asyncio.timeout(BOUND_S):
            await asyncio.wait({counting})
        assert counting.exception() is not None


def dies(monkeypatch: pytest.MonkeyPatch, name: str) -> asyncio.Event:
    """The engine of this name ends once the event is set."""
    dead = asyncio.Event()
    lives = SimEngine.lost

    async def lost(engine: SimEngine) -> str:
        if engine.facts.name != name:
            return await lives(engine)
        await dead.wait()
        return "killed"

    monkeypatch.setattr(SimEngine, "lost", lost)
    return dead


async def test_a_model_that_dies_while_it_leaves_takes_no_other_with_it(tmp_path, monkeypatch):
    dead = dies(monkeypatch, "lake")
    async with operated(tmp_path) as operator:
        await operator.load("lake", "lake")
        stays = await Stream(operator).begun()
        leaves = await Stream(operator, model="lake").begun()
        unloading = asyncio.create_task(operator.ask("UnloadModel", name="lake"))
        await soon(lambda: "lake" not in roster_of(operator).names)
        dead.set()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await leaves.whole()
        assert fault_from_rpc_error(failed.value).reason == errors_pb2.ERROR_REASON_BACKEND_LOST
        await unloading
        await stays.begun()
        await stays.cancel()
        assert operator.caller.host.health.is_ready


async def test_a_model_that_died_before_it_was_to_leave_ends_the_process(tmp_path, monkeypatch):
    dead = dies(monkeypatch, "lake")
    gate = Gate(Host.stop_serving)
    monkeypatch.setattr(Host, "stop_serving", gate.method)
    with pytest.RaisesGroup(EngineLost):
        async with operated(tmp_path) as operator:
            await operator.load("lake", "lake")
            dead.set()
            await gate.reached.wait()
            await operator.ask("UnloadModel", name="lake")
            gate.open.set()
            await asyncio.sleep(BOUND_S)


async def test_nothing_is_loaded_beside_a_first_model_that_still_loads(tmp_path, monkeypatch):
    """Two at once would take each other's processes for their own."""
    gate = Gate(SimEngine.start)
    port = free_port()
    keys = LocalKeys()
    over = asyncio.Event()

    async def serve() -> None:
        async with operated(tmp_path, keys=keys, listen=f"127.0.0.1:{port}") as operator:
            assert await operator.listed() == [MODEL_NAME]
            await over.wait()

    with monkeypatch.context() as patch:
        patch.setattr(SimEngine, "start", gate.method)
        serving = asyncio.create_task(serve())
        async with asyncio.timeout(BOUND_S), open_channel(f"127.0.0.1:{port}") as channel:
            await gate.reached.wait()
            stub = model_admin_pb2_grpc.ModelAdminServiceStub(channel)
            asked = model_admin_pb2.LoadModelRequest(name="lake", source="lake")
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                async for _ in stub.LoadModel(asked, metadata=bearer(keys.token("admin"))):
                    pass
            gate.open.set()
    fault = fault_from_rpc_error(failed.value)
    assert fault.reason == errors_pb2.ERROR_REASON_MODEL_LOADING
    assert fault.retry_after
    over.set()
    await serving


async def test_a_load_that_is_cut_short_by_the_end_of_the_process_is_closed(tmp_path, monkeypatch):
    dead = dies(monkeypatch, MODEL_NAME)
    closed: list[str] = []
    close = SimEngine.close

    async def closes(engine: SimEngine) -> None:
        closed.append(engine._options.name)
        await close(engine)

    monkeypatch.setattr(SimEngine, "close", closes)
    with pytest.RaisesGroup(EngineLost):
        async with operated(tmp_path) as operator:
            gate = Gate(SimEngine.start)
            monkeypatch.setattr(SimEngine, "start", gate.method)
            loading = asyncio.create_task(operator.load("lake", "lake"))
            await gate.reached.wait()
            dead.set()
            await asyncio.sleep(BOUND_S)
    await asyncio.wait({loading})
    assert loading.cancelled() or loading.exception() is not None
    assert set(closed) == {"lake", MODEL_NAME}


async def test_health_follows_at_once_though_the_registry_hangs(tmp_path, monkeypatch):
    async with operated(tmp_path) as operator:
        host = operator.caller.host
        gate = Gate(host.tell)
        monkeypatch.setattr(host, "tell", gate.method)
        await operator.ask("UnloadModel", name=MODEL_NAME, allow_last=True)
        async with asyncio.timeout(BOUND_S):
            await gate.reached.wait()
        assert not host.health.is_ready
        await operator.load("lake", "lake")
        assert host.health.is_ready
        gate.open.set()
