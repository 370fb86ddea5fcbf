"""What callers of a router see while an engine behind it swaps, unloads or puts models to sleep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from anabranch.v1 import admin_pb2, errors_pb2, model_admin_pb2, model_admin_pb2_grpc, model_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, fault_from_rpc_error
from services.local_engine.engine import ModelFacts
from services.local_engine.simulation.engine import SimEngine
from tests.inprocess.test_response_cache import ask, kept, stored
from tests.support.auth import bearer
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub
from tests.support.waiting import BOUND_S, until

TOKENS = 400
SLOW = {"step_model": "5000,0,0,0", "sleep_mode": True}


@dataclass
class Routed:
    """A router before engines that operators change."""

    cluster: Cluster
    stub: Any
    admins: list[Any]
    metadata: list[tuple[str, str]]

    async def change(self, engine: int, rpc: str, **fields: Any) -> Any:
        message = getattr(model_admin_pb2, f"{rpc}Request")(**fields)
        method = getattr(self.admins[engine], rpc)
        if rpc == "LoadModel":
            return [step async for step in method(message, metadata=self.metadata)][-1]
        return await method(message, metadata=self.metadata, timeout=BOUND_S)

    def ask(self, number: int = 0, model: str = MODEL, tokens: int = TOKENS) -> Any:
        return self.stub.StreamGenerate(
            pb.GenerateRequest(
                model=model,
                prompt_token_ids=[300 + number],
                sampling=pb.Sampling(max_tokens=tokens, ignore_eos=True, temperature=0.0),
            ),
            metadata=self.metadata,
            timeout=BOUND_S,
        )

    async def refused(self, model: str = MODEL) -> Fault:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            async for _ in self.ask(model=model, tokens=4):
                pass
        return fault_from_rpc_error(failed.value)

    async def listed(self) -> set[str]:
        page = await self.stub.ListModels(model_pb2.ListModelsRequest(), metadata=self.metadata)
        return {model.name for model in page.models}

    async def lists(self, *names: str) -> None:
        async def so() -> bool:
            return await self.listed() == set(names)

        await until(so)


class Stream:
    """A caller that reads a whole answer."""

    def __init__(self, call: Any) -> None:
        self.tokens: list[int] = []
        self.last: pb.GenerateChunk | None = None
        self._call = call
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for chunk in self._call:
            assert chunk.first_token == len(self.tokens)
            self.tokens.extend(chunk.token_ids)
            self.last = chunk

    async def begun(self) -> None:
        async def has() -> bool:
            return bool(self.tokens) or self.task.done()

        await until(has)


@asynccontextmanager
async def routed(
    directory: Path, *engines: dict[str, Any], router: dict[str, Any] | None = None
) -> AsyncIterator[Routed]:
    (directory / "allowed" / "lake").mkdir(parents=True)
    sources = {"model_sources": (str(directory / "allowed"),)}
    settings = [SLOW | sources | changes for changes in engines]
    async with cluster(directory, engines=settings, router=router) as running:
        assert running.router is not None
        channels = [running.channel(engine.host) for engine in running.engines]
        async with running.channel(running.router) as to_router:
            yield Routed(
                running,
                model_stub(to_router),
                [model_admin_pb2_grpc.ModelAdminServiceStub(channel) for channel in channels],
                list(bearer(await running.token())),
            )
        for channel in channels:
            await channel.close()


async def whole(scene: Routed, change: Any) -> list[list[int]]:
    """The answers of callers who were reading while something changed, each checked to be whole."""
    streams = [Stream(scene.ask(number)) for number in range(12)]
    for stream in streams:
        await stream.begun()
    await change
    for stream in streams:
        await stream.task
        assert stream.last is not None
        assert stream.last.finish_reason == pb.FINISH_REASON_LENGTH
        assert len(stream.tokens) == TOKENS
    return [stream.tokens for stream in streams]


@pytest.mark.parametrize("rpc", ["UnloadModel", "Sleep"])
async def test_streams_of_a_model_that_is_cut_off_go_on_elsewhere_token_for_token(tmp_path, rpc):
    async with routed(tmp_path, {}, {}) as scene:
        undisturbed = await whole(scene, asyncio.sleep(0))
        more = {"allow_last": True} if rpc == "UnloadModel" else {}
        leaves = scene.change(0, rpc, name=MODEL, drain_timeout={"seconds": 0}, **more)
        assert await whole(scene, leaves) == undisturbed


async def test_a_swap_behind_a_router_loses_no_stream_and_refuses_nobody(tmp_path):
    async with routed(tmp_path, {}) as scene:
        over = asyncio.Event()
        answered = 0

        async def caller(number: int) -> None:
            nonlocal answered
            while not over.is_set():
                stream = Stream(scene.ask(number, tokens=20))
                await stream.task
                assert len(stream.tokens) == 20
                answered += 1

        callers = [asyncio.create_task(caller(number)) for number in range(8)]
        for _ in range(3):
            done = await scene.change(0, "LoadModel", name=MODEL, source="lake")
            assert done.cut_off == 0
        over.set()
        await asyncio.gather(*callers)
        assert answered >= 8


async def test_a_model_that_leaves_while_requests_wait_in_line_refuses_them_at_once(tmp_path):
    async with routed(tmp_path, {"max_num_seqs": 1}) as scene:
        await scene.change(0, "LoadModel", name="lake", source="lake")
        await scene.lists(MODEL, "lake")
        runs = [Stream(scene.ask(number, tokens=20_000)) for number in range(12)]
        await runs[0].begun()

        async def in_line() -> bool:
            (backend,) = await scene.cluster.backends()
            return backend.in_flight < len(runs)

        await until(in_line)
        await scene.change(0, "UnloadModel", name=MODEL, drain_timeout={"seconds": 0})
        await asyncio.wait([run.task for run in runs])
        reasons = set()
        for run in runs:
            error = run.task.exception()
            assert isinstance(error, grpc.aio.AioRpcError)
            fault = fault_from_rpc_error(error)
            if fault.reason == errors_pb2.ERROR_REASON_NO_BACKEND:
                assert fault.retry_after, "it was at the engine, and was cut off there"
            reasons.add(fault.reason)
        assert reasons <= {
            errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
            errors_pb2.ERROR_REASON_BACKEND_LOST,
            errors_pb2.ERROR_REASON_NO_BACKEND,
        }
        assert errors_pb2.ERROR_REASON_MODEL_NOT_FOUND in reasons


async def test_what_a_router_says_of_a_model_that_is_gone_or_asleep(tmp_path):
    async with routed(tmp_path, {}) as scene:
        await scene.change(0, "LoadModel", name="lake", source="lake")
        await scene.lists(MODEL, "lake")
        await scene.change(0, "Sleep", name="lake")
        assert (await scene.refused("lake")).reason in (
            errors_pb2.ERROR_REASON_MODEL_ASLEEP,  # it has not heard of it yet
            errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
        )
        await scene.lists(MODEL)
        assert (await scene.refused("lake")).reason == errors_pb2.ERROR_REASON_MODEL_NOT_FOUND
        await scene.change(0, "Wake", name="lake")
        await scene.lists(MODEL, "lake")
        await Stream(scene.ask(model="lake", tokens=4)).task
        await scene.change(0, "UnloadModel", name="lake")
        assert (await scene.refused("lake")).reason == errors_pb2.ERROR_REASON_MODEL_NOT_FOUND
        await scene.change(0, "UnloadModel", name=MODEL, allow_last=True)
        assert (await scene.refused()).reason == errors_pb2.ERROR_REASON_MODEL_NOT_FOUND


@pytest.mark.parametrize("rpc", ["UnloadModel", "Sleep", "LoadModel"])
async def test_what_an_operator_cuts_off_is_no_failure_of_the_backend(tmp_path, rpc):
    """Else its other models would get nothing until its breaker closes."""
    async with routed(tmp_path, {}) as scene:
        await scene.change(0, "LoadModel", name="lake", source="lake")
        await scene.lists(MODEL, "lake")
        runs = [Stream(scene.ask(number, tokens=20_000)) for number in range(12)]
        for run in runs:
            await run.begun()
        more = {"source": "lake"} if rpc == "LoadModel" else {}
        done = await scene.change(0, rpc, name=MODEL, drain_timeout={"seconds": 0}, **more)
        assert done.cut_off == 12
        await asyncio.wait([run.task for run in runs])
        rest = Stream(scene.ask(model="lake", tokens=4))
        await rest.task
        assert len(rest.tokens) == 4
        (backend,) = await scene.cluster.backends()
        assert backend.breaker == admin_pb2.BREAKER_STATE_CLOSED


def tell_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory's name tells weights apart; simulations have none of their own."""
    told = SimEngine.facts

    def facts(engine: SimEngine) -> ModelFacts:
        return replace(told.__get__(engine), source=f"v{engine._options.context_length}")

    monkeypatch.setattr(SimEngine, "facts", property(facts))


async def test_an_answer_that_outlasts_a_swap_names_the_weights_that_made_it(tmp_path, monkeypatch):
    tell_weights(monkeypatch)
    async with routed(tmp_path, {}) as scene:
        stream = Stream(scene.ask())
        await stream.begun()
        options = {"max_model_len": 2048}
        await scene.change(0, "LoadModel", name=MODEL, source="lake", options=options)
        await stream.task
        later = Stream(scene.ask(tokens=4))
        await later.task
        assert stream.last is not None
        assert later.last is not None
        assert stream.last.receipt.served_model == "v32768"
        assert later.last.receipt.served_model == "v2048"


async def test_answers_of_weights_that_were_swapped_are_not_given_again(tmp_path, monkeypatch):
    tell_weights(monkeypatch)
    async with routed(tmp_path, {}, router=kept(tmp_path)) as scene:
        question = ask(model=MODEL)

        async def answered() -> pb.RouteReceipt:
            answer = await scene.stub.Generate(question, metadata=scene.metadata, timeout=BOUND_S)
            return answer.receipt

        assert (await answered()).served_model == "v32768"
        assert scene.cluster.router is not None
        await stored(scene.cluster.router, 1)
        assert (await answered()).cache
        options = {"max_model_len": 2048}
        await scene.change(0, "LoadModel", name=MODEL, source="lake", options=options)

        async def heard() -> bool:
            page = await scene.stub.ListModels(
                model_pb2.ListModelsRequest(), metadata=scene.metadata
            )
            return [model.context_length for model in page.models] == [2048]

        await until(heard)
        fresh = await answered()
        assert not fresh.cache
        assert fresh.served_model == "v2048"
