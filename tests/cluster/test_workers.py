"""A router of two workers: real processes that share a port, die, are replaced, and leave."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import psutil
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)

from anabranch import AsyncClient, NotFoundError
from anabranch.errors import AnabranchError
from anabranch.types import Answer
from anabranch.v1 import admin_pb2, generation_pb2, model_pb2, model_pb2_grpc
from services.chassis.channels import open_channel
from tests.support.auth import bearer, until
from tests.support.health import http_answers, reason
from tests.support.redis import binary, redis_server
from tests.support.waiting import BOUND_S
from tests.support.workers import (
    WorkerProcess,
    ask_any,
    ask_each,
    openmetrics,
    until_workers,
    values,
    workers,
)
from tools import identities
from tools.cluster import Cluster, EngineKind, EngineSpec
from tools.cluster.ports import free_port
from tools.cluster.recipes import ROOT, SIM_MODEL

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def two_workers(folder: Path, **settings: str) -> Cluster:
    engines = [EngineSpec(f"sim-{n}", EngineKind.SIM, SIM_MODEL, settings) for n in (1, 2)]
    return Cluster(folder, engines=engines, cloud=False, router_workers=2)


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[Cluster]:
    # Slow enough that what is to happen in the midst of answers does, on a busy machine as well.
    async with two_workers(tmp_path, SIM_SLOWDOWN="3") as cluster:
        await until_workers(cluster, 2)
        yield cluster


async def clients(stack: AsyncExitStack, cluster: Cluster, count: int) -> list[AsyncClient]:
    """Each has a connection of its own, so some meet one worker and some the other."""
    token = await cluster.token("demo")
    return [
        await stack.enter_async_context(AsyncClient(cluster.router, token=token))
        for _ in range(count)
    ]


async def ask(caller: AsyncClient, tokens: int, prompt: str = "story") -> Answer:
    return await caller.generate(model=SIM_MODEL, prompt=prompt, max_tokens=tokens, ignore_eos=True)


async def in_flight(cluster: Cluster) -> int:
    found = await ask_any(cluster, "ListBackends", admin_pb2.ListBackendsRequest())
    return sum(backend.in_flight for backend in found.backends)


async def test_both_workers_get_sessions_and_one_address_tells_of_both(router):
    async with AsyncExitStack() as stack:
        callers = await clients(stack, router, 24)
        asked = [asyncio.ensure_future(ask(caller, 400)) for caller in callers]

        async def all_run() -> bool:
            return await in_flight(router) == 24

        # Whoever is asked adds up what all have in flight.
        await until(all_run, during=asked)
        each = await ask_each(router, "ListBackends", admin_pb2.ListBackendsRequest())
        shares = [sum(backend.in_flight for backend in reply.backends) for reply in each]
        assert sum(shares) == 24
        assert all(shares)
        await asyncio.gather(*asked)
    measured = await values(router, "gen_ai_server_request_duration_seconds_count")
    assert set(measured) == {"0", "1"}
    assert sum(measured.values()) == 24
    # What is each worker's own, what all say of the same, and what one says for all.
    ended = await values(router, "anabranch_router_requests_total")
    assert sum(ended.values()) == 24
    assert await values(router, "anabranch_router_backend_ready") == {"0": 2.0, "1": 2.0}
    (told,) = (await values(router, "anabranch_resources_memory_used_bytes")).items()
    resident = sum(psutil.Process(worker.pid).memory_info().rss for worker in workers(router))
    assert told[0] == "supervisor"
    assert told[1] > resident / 2
    families = {family.name: family for family in openmetrics_families(await openmetrics(router))}
    found = {s.labels["worker"] for s in families["anabranch_router_backend_ready"].samples}
    assert found == {"0", "1"}
    assert set(await values(router, "process_resident_memory_bytes")) == {"0", "1", "supervisor"}


async def test_a_killed_worker_costs_only_the_streams_that_it_had_begun(router):
    async with AsyncExitStack() as stack:
        callers = await clients(stack, router, 24)
        started = [asyncio.Event() for _ in callers]

        async def read(caller: AsyncClient, begun: asyncio.Event) -> Answer:
            async with caller.stream(
                model=SIM_MODEL, prompt="story", max_tokens=600, ignore_eos=True
            ) as stream:
                async for chunk in stream:
                    if chunk.token_ids:
                        begun.set()
                return await stream.finish()

        reading = [
            asyncio.ensure_future(read(caller, begun))
            for caller, begun in zip(callers, started, strict=True)
        ]
        for begun in started:
            await begun.wait()
        each = await ask_each(router, "ListBackends", admin_pb2.ListBackendsRequest())
        had = sum(backend.in_flight for backend in each[0].backends)
        victim = workers(router)[0]
        os.kill(victim.pid, signal.SIGKILL)
        ended = await asyncio.gather(*reading, return_exceptions=True)
        # Every caller goes on: at once with the other worker, later with the new one as well.
        again = await asyncio.gather(*(ask(caller, 5) for caller in callers))
        await until_workers(router, 2, gone=[victim])
    lost = [end for end in ended if isinstance(end, BaseException)]
    assert 0 < len(lost) == had < 24
    assert all(isinstance(e, AnabranchError) and e.reason == "SESSION_LOST" for e in lost)
    answers = [end for end in ended if isinstance(end, Answer)]
    assert all(len(answer.choices[0].token_ids) == 600 for answer in answers)
    assert all(len(answer.choices[0].token_ids) == 5 for answer in again)
    assert (await values(router, "anabranch_worker_deaths_total")) == {"supervisor": 1.0}


async def test_requests_without_output_survive_the_kill_of_their_worker(tmp_path):
    # A prefill of many seconds: the kill comes before any token.
    async with two_workers(tmp_path, SIM_SLOWDOWN="25") as router, AsyncExitStack() as stack:
        await until_workers(router, 2)
        callers = await clients(stack, router, 16)
        asked = [
            asyncio.ensure_future(ask(caller, 3, f"{n} " + "river " * 1000))
            for n, caller in enumerate(callers)
        ]

        async def all_run() -> bool:
            return await in_flight(router) == 16

        await until(all_run, during=asked)
        os.kill(workers(router)[0].pid, signal.SIGKILL)
        answers = await asyncio.gather(*asked)
    assert all(len(answer.choices[0].token_ids) == 3 for answer in answers)


async def test_a_restart_one_by_one_under_load_fails_no_call(router):
    before = workers(router)
    over = asyncio.Event()
    token = await router.token("demo")

    async def plain_calls() -> int:
        """Plain RPCs over one connection, one after the other: each must be answered."""
        count = 0
        own = (("grpc.use_local_subchannel_pool", 1),)
        async with open_channel(router.router, options=own) as channel:
            stub = model_pb2_grpc.ModelServiceStub(channel)
            request = generation_pb2.GenerateRequest(model=SIM_MODEL, prompt="hi")
            request.sampling.max_tokens = 2
            while not over.is_set():
                call = stub.StreamGenerate(request, metadata=bearer(token), timeout=BOUND_S)
                assert [chunk async for chunk in call][-1].finish_reason
                await stub.ListModels(
                    model_pb2.ListModelsRequest(), metadata=bearer(token), timeout=BOUND_S
                )
                count += 2
        return count

    async with AsyncExitStack() as stack:
        callers = await clients(stack, router, 20)
        plain = [asyncio.ensure_future(plain_calls()) for _ in range(8)]
        # Some callers keep one stream, some ask again and again: five of each a client.
        long = [asyncio.ensure_future(ask(c, 500)) for c in callers for _ in range(5)]

        async def ask_repeatedly(caller: AsyncClient) -> int:
            count = 0
            while not over.is_set():
                assert len((await ask(caller, 10)).choices[0].token_ids) == 10
                count += 1
            return count

        short = [asyncio.ensure_future(ask_repeatedly(caller)) for caller in callers]

        async def most_run() -> bool:
            return await in_flight(router) >= 100

        await until(most_run, during=[*long, *short])
        os.kill(router.processes["router"].record.pid, signal.SIGHUP)
        answers = await asyncio.gather(*long)
        async with asyncio.timeout(3 * BOUND_S):
            await until_replaced(router, before)
        over.set()
        counts = await asyncio.gather(*short, *plain)
    assert len(answers) == 100
    assert all(len(answer.choices[0].token_ids) == 500 for answer in answers)
    assert all(answer.receipt.resumed_at_tokens == () for answer in answers)
    assert all(count > 0 for count in counts)
    assert (await values(router, "anabranch_worker_deaths_total")) == {"supervisor": 0.0}


async def test_the_probes_of_the_whole_tell_of_each_worker(router):
    http = router.processes["router"].record.http
    assert await http_answers(http) == (True, True, True)
    victim = workers(router)[0]
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        # One that is stuck still gets callers from the kernel; the other one answers.
        assert await http_answers(http) == (True, True, False)
        assert f"worker {victim.assignment.index} does not answer" in await reason(http, "/livez")
    finally:
        os.kill(victim.pid, signal.SIGCONT)
    await until_workers(router, 2)
    assert await http_answers(http) == (True, True, True)


@pytest.mark.slow
async def test_a_stuck_worker_is_replaced_and_its_callers_are_served_by_others(router):
    victim = workers(router)[0]
    os.kill(victim.pid, signal.SIGSTOP)

    async def is_gone() -> bool:
        return victim not in workers(router)

    await until(is_gone, 3 * BOUND_S)
    await until_workers(router, 2, gone=[victim])
    assert await http_answers(router.processes["router"].record.http) == (True, True, True)
    assert (await values(router, "anabranch_worker_deaths_total")) == {"supervisor": 1.0}
    async with AsyncExitStack() as stack:
        callers = await clients(stack, router, 8)
        await asyncio.gather(*(ask(caller, 5) for caller in callers))


async def until_replaced(cluster: Cluster, before: Sequence[WorkerProcess]) -> None:
    """Waits until none of the workers of before is left and two others serve."""
    while True:
        present = workers(cluster)
        if len(present) == 2 and not set(present) & set(before):
            return await until_workers(cluster, 2)
        await asyncio.sleep(0.05)


async def test_a_drain_reaches_every_worker_and_those_that_come_later(router):
    backends = admin_pb2.ListBackendsRequest()

    async def drained() -> list[bool]:
        each = await ask_each(router, "ListBackends", backends)
        return [backend.drained for reply in each for backend in reply.backends]

    answer = await ask_any(
        router, "DrainBackend", admin_pb2.DrainBackendRequest(backend_id="sim-1")
    )
    assert answer.backend.drained
    assert await drained() == [True, False, True, False]
    victim = workers(router)[0]
    os.kill(victim.pid, signal.SIGKILL)
    await until_workers(router, 2, gone=[victim])
    assert await drained() == [True, False, True, False]
    async with AsyncExitStack() as stack:
        callers = await clients(stack, router, 12)
        answers = await asyncio.gather(*(ask(caller, 5) for caller in callers))
    assert {answer.receipt.backend_id for answer in answers} == {"sim-2"}

    await ask_any(router, "UndrainBackend", admin_pb2.UndrainBackendRequest(backend_id="sim-1"))
    assert await drained() == [False] * 4
    for method, request in (
        ("DrainBackend", admin_pb2.DrainBackendRequest(backend_id="none")),
        ("ResetBreaker", admin_pb2.ResetBreakerRequest(backend_id="none")),
        ("CancelRequest", admin_pb2.CancelRequestRequest(request_id="none")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask_any(router, method, request)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    reset = admin_pb2.ResetBreakerRequest(backend_id="sim-2")
    assert (await ask_any(router, "ResetBreaker", reset)).backend.backend_id == "sim-2"


async def test_a_request_is_cancelled_and_a_level_set_wherever_they_are_asked_for(router):
    async with AsyncExitStack() as stack:
        callers = await clients(stack, router, 8)
        ids = [uuid.uuid4().hex for _ in callers]
        asked = [
            asyncio.ensure_future(
                caller.generate(
                    model=SIM_MODEL, prompt="x", max_tokens=8000, ignore_eos=True, request_id=one
                )
            )
            for caller, one in zip(callers, ids, strict=True)
        ]

        async def all_run() -> bool:
            return await in_flight(router) == 8

        await until(all_run, during=asked)
        for one in ids:
            await ask_any(router, "CancelRequest", admin_pb2.CancelRequestRequest(request_id=one))
        await asyncio.wait(asked, timeout=BOUND_S)
        assert all(one.done() for one in asked)
        await asyncio.gather(*asked, return_exceptions=True)

    level = await ask_any(router, "SetLogLevel", admin_pb2.SetLogLevelRequest(level="error"))
    assert level.previous_level == "info"
    victim = workers(router)[1]
    os.kill(victim.pid, signal.SIGKILL)
    await until_workers(router, 2, gone=[victim])
    each = await ask_each(router, "SetLogLevel", admin_pb2.SetLogLevelRequest(level="info"))
    assert [reply.previous_level for reply in each] == ["error", "error"]


async def test_one_level_holds_in_every_worker_and_in_no_other_process(router):
    token = await router.token(identities.ADMIN)
    engine = router.processes["sim-1"].record.address
    async with (
        AsyncClient(router.router, token=token) as operator,
        AsyncClient(engine, token=token) as aside,
    ):
        assert await operator.set_log_level("error") == "info"

        async def levels() -> list[str]:
            found = []
            for worker in workers(router):
                async with AsyncClient(worker.assignment.grpc_socket, token=token) as each:
                    found.append(await each.log_level())
            return found

        assert await levels() == ["error", "error"]
        victim = workers(router)[0]
        os.kill(victim.pid, signal.SIGKILL)
        await until_workers(router, 2, gone=[victim])
        assert await levels() == ["error", "error"]
        assert await aside.log_level() == "info"
        assert await aside.set_log_level("debug") == "info"
    log = router.processes["sim-1"].log.read_text()
    assert '"message":"log level changed"' in log


async def test_feedback_finds_the_worker_that_gave_the_answer(router):
    own = (("grpc.use_local_subchannel_pool", 1),)
    token = await router.token("demo")

    async def say(request_id: str, rating: int) -> None:
        """Over a new connection, so that any worker may be asked."""
        request = model_pb2.FeedbackRequest(request_id=request_id, rating=rating)
        async with open_channel(router.router, options=own) as channel:
            stub = model_pb2_grpc.ModelServiceStub(channel)
            await stub.Feedback(request, metadata=bearer(token), timeout=BOUND_S)

    async with AsyncExitStack() as stack:
        callers = await clients(stack, router, 12)
        answers = await asyncio.gather(*(ask(caller, 3) for caller in callers))
    # Each is judged over several connections: some of them meet the worker that did not answer.
    for _ in range(4):
        await asyncio.gather(*(say(answer.request_id, 4) for answer in answers))
    for request_id, rating, code in (
        (answers[0].request_id, 5, grpc.StatusCode.ALREADY_EXISTS),
        ("never-was", 5, grpc.StatusCode.NOT_FOUND),
    ):
        for _ in range(6):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await say(request_id, rating)
            assert refused.value.code() is code
    counted = await values(router, "anabranch_router_feedback_rating_count")
    assert set(counted) == {"0", "1"}
    assert sum(counted.values()) == 12


async def test_a_private_socket_lets_nobody_in_without_a_credential(router):
    first = workers(router)[0]
    assert os.stat(first.assignment.directory).st_mode & 0o777 == 0o700
    async with open_channel(first.assignment.grpc_socket) as channel:
        list_backends = channel.unary_unary("/anabranch.v1.RouterAdminService/ListBackends")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await list_backends(b"", timeout=BOUND_S)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_ordered_end_finishes_streams_and_leaves_no_process(router):
    present = workers(router)
    async with AsyncExitStack() as stack:
        callers = await clients(stack, router, 12)
        asked = [asyncio.ensure_future(ask(caller, 400)) for caller in callers]

        async def all_run() -> bool:
            return await in_flight(router) == 12

        await until(all_run, during=asked)
        assert await router.end("router") == 0
        answers = await asyncio.gather(*asked)
    assert all(len(answer.choices[0].token_ids) == 400 for answer in answers)
    assert left(present) == []


async def test_workers_end_when_their_supervisor_is_killed(router):
    present = workers(router)
    os.kill(router.processes["router"].record.pid, signal.SIGKILL)

    async def none_left() -> bool:
        return left(present) == []

    await until(none_left)


async def test_a_second_signal_ends_all_at_once(router):
    present = workers(router)
    supervisor = router.processes["router"]
    async with AsyncExitStack() as stack:
        callers = await clients(stack, router, 4)
        asked = [asyncio.ensure_future(ask(caller, 8000)) for caller in callers]

        async def all_run() -> bool:
            return await in_flight(router) == 4

        await until(all_run, during=asked)
        os.kill(supervisor.record.pid, signal.SIGTERM)

        async def leaving() -> bool:
            return supervisor.log.read_text().count('"not serving"') >= 2

        await until(leaving)
        os.kill(supervisor.record.pid, signal.SIGTERM)
        assert await supervisor.wait(BOUND_S) == 130
        await asyncio.gather(*asked, return_exceptions=True)

    async def none_left() -> bool:
        return left(present) == []

    await until(none_left)


def left(present: Sequence[WorkerProcess]) -> list[str]:
    """What there still is of workers that should have ended: processes and folders."""
    found = [worker.assignment.directory for worker in present]
    found = [folder for folder in found if os.path.exists(folder)]
    for worker in present:
        try:
            if psutil.Process(worker.pid).status() != psutil.STATUS_ZOMBIE:
                found.append(str(worker.pid))
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.parametrize(
    ("settings", "status", "says"),
    [
        ({"REGISTRY": "none"}, 2, "CLIENT_ID"),
        ({"REGISTRY": "none", "CLIENT_ID": "r", "CLIENT_SECRET": "s", "LISTEN": "TAKEN"}, 1,
         "cannot listen on"),
        ({"REGISTRY": "none", "WORKERS": "0"}, 2, "at least 1"),
    ],
)  # fmt: skip
def test_what_cannot_run_says_why_and_ends(settings: dict[str, str], status: int, says: str):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        given = {
            "LISTEN": f"127.0.0.1:{free_port()}", "HTTP_LISTEN": "127.0.0.1:0", "WORKERS": "2",
        } | settings  # fmt: skip
        given = {k: v.replace("TAKEN", f"127.0.0.1:{port}") for k, v in given.items()}
        ended = subprocess.run(
            [sys.executable, "-m", "services.router"],
            cwd=ROOT,
            env=os.environ | {f"ANABRANCH_ROUTER_{k}": v for k, v in given.items()},
            capture_output=True,
            text=True,
            timeout=2 * BOUND_S,
            check=False,
        )
    assert ended.returncode == status
    assert says in ended.stderr


@pytest.mark.skipif(binary() is None, reason="no Redis server installed")
async def test_workers_that_share_a_redis_do_not_ask_each_other_about_feedback(tmp_path):
    """Each would ask the same Redis: a wrong id would cost as many questions as workers."""
    wrong, workers_now = 6, 3
    with redis_server() as server, server.client() as redis:

        def asked() -> int:
            found = redis.info("commandstats").get("cmdstat_evalsha", {"calls": 0})
            return int(found["calls"])

        settings = {"REDIS_URL": server.url.reveal()}
        async with Cluster(
            tmp_path,
            engines=[EngineSpec("sim-1", EngineKind.SIM, SIM_MODEL)],
            cloud=False,
            router_workers=workers_now,
            router_settings=settings,
        ) as cluster:
            await until_workers(cluster, workers_now)
            token = await cluster.token("demo")
            async with AsyncClient(cluster.router, token=token) as caller:
                with pytest.raises(NotFoundError):
                    await caller.feedback("never-was", rating=1)
                before = asked()
                for _ in range(wrong):
                    with pytest.raises(NotFoundError):
                        await caller.feedback("never-was", rating=1)
                # Twice each: the answer may have been on its way.
                assert asked() - before == 2 * wrong
