"""What real processes answer to probes: while they load, serve, hang, drain and lose a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from anabranch.v1 import errors_pb2, model_pb2_grpc
from anabranch.v1 import generation_pb2 as pb
from services.auth import app as auth_app
from services.auth import settings as auth_settings
from services.chassis.channels import open_channel
from services.chassis.errors import fault_from_rpc_error
from services.chassis.host import Host
from services.chassis.settings import Secret
from services.local_engine.app import EngineLost, make_engine, running
from services.local_engine.settings import Settings
from services.local_engine.simulation.engine import SimEngine, SimOptions
from services.local_engine.simulation.model import answer_seed, token_at
from services.router import app as router_app
from services.router import settings as router_settings
from tests.support import inprocess
from tests.support.auth import bearer
from tests.support.health import answers, asked, http_answers, reason, until_answers
from tests.support.inprocess import cluster, model_stub
from tests.support.local_keys import LocalKeys
from tests.support.postgres import binaries, stoppable_postgres
from tests.support.raw_http2 import message, peer, request
from tests.support.waiting import BOUND_S, until
from tools.cluster.ports import free_port

MODEL = "river"
MODEL_OF_ALL = inprocess.MODEL
STATUS = health_pb2.HealthCheckResponse
YES, NO = True, False


class Engine:
    """A sim engine whose life the test ends with `leave`; `ended` is when that is done."""

    def __init__(self, simulation: SimEngine, **changes: Any) -> None:
        self.simulation = simulation
        self.keys: LocalKeys | None = LocalKeys()
        self.address, self.probes = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.http = f"127.0.0.1:{free_port()}"
        fields: dict[str, Any] = {
            "listen": self.address,
            "http_listen": self.http,
            "health_listen": self.probes,
            "engine": "sim",
            "served_model_name": MODEL,
            "drain_timeout": BOUND_S,
        }
        self.settings = Settings(**fields | changes)
        self.host: Host
        self.serves = asyncio.Event()
        self.leave = asyncio.Event()

    async def live(self) -> None:
        async with running(self.settings, key_source=self.keys, engine=self.simulation) as host:
            self.host = host
            self.serves.set()
            await self.leave.wait()

    def stream(self, channel: grpc.aio.Channel, tokens: int = 20_000) -> Any:
        assert self.keys is not None
        asked_for = pb.GenerateRequest(
            model=MODEL, prompt="x", sampling=pb.Sampling(max_tokens=tokens, ignore_eos=True)
        )
        return model_pb2_grpc.ModelServiceStub(channel).StreamGenerate(
            asked_for, metadata=bearer(self.keys.token("generate")), timeout=2 * BOUND_S
        )


@asynccontextmanager
async def living(engine: Engine) -> AsyncIterator[tuple[grpc.aio.Channel, asyncio.Task[None]]]:
    """The engine, once it serves; with a channel to its health port."""
    task = asyncio.ensure_future(engine.live())
    async with open_channel(engine.probes) as channel:
        try:
            serves = asyncio.ensure_future(engine.serves.wait())
            await asyncio.wait((serves, task), return_when=asyncio.FIRST_COMPLETED)
            serves.cancel()
            yield channel, task
        finally:
            engine.leave.set()
            engine.simulation.stalled = False
            await asyncio.wait((task,))


async def rest(call: Any) -> list[pb.GenerateChunk]:
    """What is still to come. Raises AioRpcError."""
    chunks = []
    while (chunk := await call.read()) is not grpc.aio.EOF:
        chunks.append(chunk)
    return chunks


async def test_while_the_model_loads_it_is_alive_but_neither_started_nor_ready():
    loading, loaded = asyncio.Event(), asyncio.Event()

    async def sleep(seconds: float) -> None:
        if not loaded.is_set():
            loading.set()
            await loaded.wait()
        else:
            await asyncio.sleep(seconds)

    engine = Engine(SimEngine(SimOptions(name=MODEL, load_seconds=1), sleep=sleep))
    task = asyncio.ensure_future(engine.live())
    await loading.wait()
    async with open_channel(engine.probes) as plain, open_channel(engine.address) as own:
        for channel in (plain, own):
            assert await answers(channel) == (NO, NO, YES)
            assert not await asked(channel, "")
            assert not await asked(channel, "anabranch.v1.ModelService")
        assert await http_answers(engine.http) == (NO, NO, YES)
        loaded.set()
        await until_answers(plain, YES, YES, YES)
        assert await asked(own, "anabranch.v1.ModelService")
        assert await http_answers(engine.http) == (YES, YES, YES)
    engine.leave.set()
    await task


async def test_while_it_drains_it_is_alive_and_started_but_not_ready():
    engine = Engine(SimEngine(SimOptions(name=MODEL)))
    async with living(engine) as (probes, task), open_channel(engine.address) as channel:
        call = engine.stream(channel)
        await call.read()
        engine.leave.set()
        await until_answers(probes, YES, NO, YES)
        assert not await asked(probes, "anabranch.v1.ModelService")
        assert await http_answers(engine.http) == (YES, NO, YES)
        assert "shutting down" in await reason(engine.http, "/readyz")
        assert not task.done(), "a stream is still running"
        call.cancel()
        await asyncio.wait((task,), timeout=BOUND_S)
        assert task.done()


async def test_a_name_that_is_none_is_not_found_and_watched_as_unknown():
    engine = Engine(SimEngine(SimOptions(name=MODEL)))
    async with living(engine) as (probes, _):
        for name in (
            "ready",
            "Liveness",
            MODEL,
            "anabranch.v1.AuthService",
            "grpc.health.v1.Health",
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await asked(probes, name)
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
            watch = health_pb2_grpc.HealthStub(probes).Watch(
                health_pb2.HealthCheckRequest(service=name), timeout=BOUND_S
            )
            assert (await watch.read()).status == STATUS.SERVICE_UNKNOWN
            watch.cancel()


async def test_whoever_watches_hears_of_each_change():
    engine = Engine(SimEngine(SimOptions(name=MODEL)))
    async with living(engine) as (probes, _):
        stub = health_pb2_grpc.HealthStub(probes)
        names = ("", "readiness", "anabranch.v1.ModelService", "liveness", "startup")
        watches = {
            name: stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=BOUND_S)
            for name in names
        }
        for watch in watches.values():
            assert (await watch.read()).status == STATUS.SERVING
        engine.host.health.trouble("test", "nothing works", restart=True)
        for name in names[:4]:
            assert (await watches[name].read()).status == STATUS.NOT_SERVING
        engine.host.health.well("test")
        for name in names[:4]:
            assert (await watches[name].read()).status == STATUS.SERVING
        engine.host.health.leaves("test")
        for name in names[:3]:
            assert (await watches[name].read()).status == STATUS.NOT_SERVING
        for watch in watches.values():
            watch.cancel()


async def test_a_watcher_that_reads_nothing_holds_nobody_up():
    engine = Engine(SimEngine(SimOptions(name=MODEL)))
    async with living(engine) as (probes, task):
        port = int(engine.probes.rpartition(":")[2])
        async with peer(port, greet=False) as slow:
            slow.greet({4: 0})  # SETTINGS_INITIAL_WINDOW_SIZE: it takes no byte of any answer
            slow.open(1, request("/grpc.health.v1.Health/Watch"))
            slow.data(1, message(b""), end=True)
            await slow.in_step()
            engine.host.health.trouble("test", "nothing works", restart=True)
            assert await answers(probes) == (YES, NO, NO)
            engine.host.health.well("test")
            engine.leave.set()
            await asyncio.wait((task,), timeout=BOUND_S)
            assert task.done()


# The engine hangs


async def metrics(address: str, name: str) -> float:
    async with aiohttp.ClientSession() as http, http.get(f"http://{address}/metrics") as answer:
        text = await answer.text()
    (line,) = [one for one in text.splitlines() if one.startswith((f"{name} ", f"{name}{{"))]
    return float(line.rpartition(" ")[2])


async def test_an_engine_that_hangs_in_a_stream_is_found_by_its_heartbeat_and_comes_back():
    engine = Engine(SimEngine(SimOptions(name=MODEL)), hang_after=0.3, hang_exit=0.0)
    async with living(engine) as (probes, task), open_channel(engine.address) as channel:
        assert await metrics(engine.http, "anabranch_engine_heartbeat_age_seconds") == 0
        call = engine.stream(channel, tokens=300)
        await call.read()
        engine.simulation.stalled = True
        await until_answers(probes, YES, NO, NO)
        assert not await asked(probes, "")
        assert await http_answers(engine.http) == (YES, NO, NO)
        assert "no step" in await reason(engine.http, "/livez")
        assert await metrics(engine.http, "anabranch_engine_hung") == 1
        assert await metrics(engine.http, "anabranch_engine_heartbeat_age_seconds") >= 0.3
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await engine.stream(channel).read()
        fault = fault_from_rpc_error(refused.value)
        assert fault.reason == errors_pb2.ERROR_REASON_BACKEND_LOST
        assert fault.code is grpc.StatusCode.UNAVAILABLE
        engine.simulation.stalled = False
        await until_answers(probes, YES, YES, YES)
        assert await metrics(engine.http, "anabranch_engine_hung") == 0
        assert (await rest(call))[-1].usage.completion_tokens == 300
        assert not task.done()


async def test_a_hang_is_found_after_every_caller_has_left():
    engine = Engine(SimEngine(SimOptions(name=MODEL)), hang_after=2.0, hang_exit=0.0)
    async with living(engine) as (probes, _), open_channel(engine.address) as channel:
        call = engine.stream(channel)
        await call.read()
        engine.simulation.stalled = True

        async def is_silent() -> bool:
            return engine.simulation.heartbeat.age > 1.2

        await until(is_silent)
        call.cancel()
        await until_answers(probes, YES, NO, NO)
        engine.simulation.stalled = False
        await until_answers(probes, YES, YES, YES)


async def test_work_that_only_waits_is_a_hang_too():
    engine = Engine(SimEngine(SimOptions(name=MODEL)), hang_after=0.3, hang_exit=0.0)
    async with living(engine) as (probes, _), open_channel(engine.address) as channel:
        engine.simulation.stalled = True
        call = engine.stream(channel)
        await until_answers(probes, YES, NO, NO)
        assert engine.simulation.load().running == 0
        call.cancel()


async def test_an_engine_that_hangs_for_too_long_ends_its_process_and_fails_its_streams():
    engine = Engine(SimEngine(SimOptions(name=MODEL)), hang_after=0.2, hang_exit=0.6)
    async with living(engine) as (_, task), open_channel(engine.address) as channel:
        calls = [engine.stream(channel) for _ in range(3)]
        for call in calls:
            await call.read()
        engine.simulation.stalled = True
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await rest(call)
            fault = fault_from_rpc_error(failed.value)
            assert fault.code is grpc.StatusCode.UNAVAILABLE
            assert fault.reason == errors_pb2.ERROR_REASON_BACKEND_LOST
            assert int(fault.metadata["tokens_delivered"]) > 0
            assert "no step" in fault.message
        await asyncio.wait((task,), timeout=BOUND_S)
        with pytest.RaisesGroup(EngineLost):
            await task


async def test_a_process_whose_engine_has_died_says_so_before_it_ends():
    died = asyncio.Event()

    class Mortal(SimEngine):
        async def lost(self) -> str:
            await died.wait()
            return "killed"

    engine = Engine(Mortal(SimOptions(name=MODEL)))
    async with living(engine) as (probes, task):
        watch = health_pb2_grpc.HealthStub(probes).Watch(
            health_pb2.HealthCheckRequest(service="liveness"), timeout=BOUND_S
        )
        assert (await watch.read()).status == STATUS.SERVING
        died.set()
        assert (await watch.read()).status == STATUS.NOT_SERVING
        with pytest.RaisesGroup(EngineLost):
            await task


async def test_a_hung_engine_that_is_told_to_end_waits_for_no_stream():
    """The drain timeout is as long as the test would wait."""
    engine = Engine(
        SimEngine(SimOptions(name=MODEL)), hang_after=0.2, hang_exit=0.0, drain_timeout=600.0
    )
    async with living(engine) as (probes, task), open_channel(engine.address) as channel:
        call = engine.stream(channel)
        await call.read()
        engine.simulation.stalled = True
        await until_answers(probes, YES, NO, NO)
        engine.leave.set()
        await asyncio.wait((task,), timeout=BOUND_S)
        assert task.done()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await rest(call)
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_neither_idling_nor_a_long_prompt_is_a_hang():
    # A step of 0.1 s reads 16 tokens: the prompt takes five times as long as a hang.
    options = SimOptions(name=MODEL)
    settings = {"hang_after": 1.0, "hang_exit": 2.0, "step_model": "100000,0,0,0"}
    engine = Engine(SimEngine(options), **settings, max_num_batched_tokens=16)
    simulation = make_engine(engine.settings)
    assert isinstance(simulation, SimEngine)
    engine.simulation = simulation
    assert engine.keys is not None
    async with living(engine) as (probes, task), open_channel(engine.address) as channel:
        watch = health_pb2_grpc.HealthStub(probes).Watch(
            health_pb2.HealthCheckRequest(service="liveness"), timeout=2 * BOUND_S
        )
        assert (await watch.read()).status == STATUS.SERVING
        changes = asyncio.ensure_future(watch.read())
        await asyncio.sleep(2.5)
        asked_for = pb.GenerateRequest(
            model=MODEL, prompt_token_ids=[300] * 800, sampling=pb.Sampling(max_tokens=1)
        )
        answer = await model_pb2_grpc.ModelServiceStub(channel).Generate(
            asked_for, metadata=bearer(engine.keys.token("generate")), timeout=BOUND_S
        )
        assert answer.usage.completion_tokens == 1
        assert not changes.done(), "liveness never changed"
        assert not task.done()
        changes.cancel()


async def test_behind_a_router_the_streams_of_a_hung_engine_go_on_elsewhere(tmp_path):
    async with cluster(tmp_path) as s:
        simulation = SimEngine(SimOptions(name=MODEL_OF_ALL))
        hanging = Engine(
            simulation,
            served_model_name=MODEL_OF_ALL,
            registry=s.registry,
            service_id="hanging",
            hang_after=0.3,
            hang_exit=0.9,
        )
        hanging.keys = None
        async with living(hanging) as (_, task), s.channel(s.router) as channel:
            await s.backends_ready(2)
            secret = await s.new_client("caller", "generate")
            auth = bearer(await s.token("caller", secret))
            calls = []
            for number in range(8):
                asked_for = pb.GenerateRequest(
                    model=MODEL_OF_ALL,
                    prompt_token_ids=[300 + number],
                    sampling=pb.Sampling(max_tokens=2000, ignore_eos=True),
                )
                call = model_stub(channel).StreamGenerate(asked_for, metadata=auth)
                calls.append((call, await call.read()))

            async def both_busy() -> bool:
                return all(e.load().running for e in (simulation, s.engines[0].simulation))

            await until(both_busy)
            simulation.stalled = True
            resumed = 0
            for number, (call, first) in enumerate(calls):
                chunks = [first, *await rest(call)]
                seed = answer_seed([300 + number])
                tokens = [token for chunk in chunks for token in chunk.token_ids]
                assert tokens == [token_at(seed, n) for n in range(2000)]
                resumed += bool(chunks[-1].receipt.resumed_at_tokens)
            assert resumed
            await asyncio.wait((task,), timeout=BOUND_S)
            with pytest.RaisesGroup(EngineLost):
                await task


# Others


async def test_a_router_without_backends_and_without_auth_is_ready(tmp_path):
    """It takes requests and says what is wrong; one that is not ready would hide it."""
    settings = router_settings.Settings(
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        registry="none",
        client_id="router",
        client_secret=Secret("s"),
        drain_timeout=1.0,
    )
    async with router_app.running(settings) as host, open_channel(host.address) as channel:
        assert await answers(channel) == (YES, YES, YES)
        assert await asked(channel, "anabranch.v1.RouterAdminService")


@pytest.mark.cluster
@pytest.mark.skipif(binaries() is None, reason="no PostgreSQL server installed")
async def test_auth_without_its_database_is_alive_but_not_ready_and_comes_back(tmp_path):
    async with AsyncExitStack() as stack:
        server = stack.enter_context(stoppable_postgres())
        settings = auth_settings.Settings(
            listen="127.0.0.1:0",
            http_listen="127.0.0.1:0",
            database_url=Secret(server.url),
            key_encryption_secret=Secret("x" * 32),
            bootstrap_secret_file=tmp_path / "admin",
            drain_timeout=1.0,
        )
        host = await stack.enter_async_context(auth_app.running(settings))
        channel = await stack.enter_async_context(open_channel(host.address))
        assert await answers(channel) == (YES, YES, YES)
        await asyncio.to_thread(server.stop)
        await until_answers(channel, YES, NO, YES)
        assert "database" in await reason(host.http_address, "/readyz")
        assert await http_answers(host.http_address) == (YES, NO, YES)
        await asyncio.to_thread(server.start)
        await until_answers(channel, YES, YES, YES)
