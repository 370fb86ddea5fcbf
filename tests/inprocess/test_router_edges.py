"""The router at its edges: what backends, the registry and bad luck can do to it."""

import asyncio

import grpc
import pytest

from anabranch.v1 import errors_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Work
from tests.support.auth import until
from tests.support.scripted_backends import Frame, scene, text_chunk

STOP = pb.FINISH_REASON_STOP
BUSY = session_pb2.LoadReport(running=1, max_running=1, starts_seen=1000)
FREE = session_pb2.LoadReport(running=0, max_running=1, starts_seen=1000)
GARBAGE = b"\xff\xff\xff"


# Being listed, and not


async def test_a_backend_that_cancels_its_session_is_connected_to_again():
    async with scene() as s:
        backend = await s.backend("a")
        backend.reject = grpc.StatusCode.CANCELLED
        s.list(backend)

        async def came_back() -> bool:
            return backend.sessions >= 3

        await until(came_back)
        backend.reject = None
        await s.ready(backend)


async def test_a_backend_that_is_unlisted_before_it_greets_is_never_used():
    async with scene() as s:
        backend = await s.backend("a")
        backend.may_greet.clear()
        s.list(backend)

        async def connecting() -> bool:
            return backend.sessions == 1

        await until(connecting)
        s.list()

        async def forgotten() -> bool:
            return len(s.pool) == 0

        await until(forgotten)
        backend.may_greet.set()
        fault = await s.ask().fault()
        assert fault.reason == errors_pb2.ERROR_REASON_MODEL_NOT_FOUND


@pytest.mark.parametrize("state", ["ready", "connecting", "lost"])
async def test_a_backend_that_leaves_and_returns_at_once_is_used(state):
    async with scene() as s:
        backend = await s.backend("a")
        if state != "ready":
            backend.may_greet.clear()
        if state == "lost":
            backend.may_greet.set()
            backend.reject = grpc.StatusCode.UNAVAILABLE
        s.list(backend)
        if state == "ready":
            await s.ready(backend)

        async def tried() -> bool:
            return backend.sessions > (1 if state == "lost" else 0)

        await until(tried)
        s.list()
        s.list(backend)

        async def both_read() -> bool:
            return s.listings.empty()

        await until(both_read)
        backend.reject = None
        backend.may_greet.set()
        await s.ready(backend)
        answer = s.ask()
        number, _ = await backend.next_start()
        await backend.send(text_chunk(number, 0, "x", 1, finish_reason=STOP))
        assert (await answer.last()).text == "x"


@pytest.mark.parametrize("word", ["go_away", "load"])
async def test_a_backend_that_said_that_it_leaves_is_not_used_because_it_is_listed_again(word):
    async with scene() as s:
        backend = await s.backend("a")
        s.list(backend)
        await s.ready(backend)
        running = s.ask()
        number, _ = await backend.next_start()
        if word == "go_away":
            await backend.says(go_away=session_pb2.GoAway(reason="leaving"))
        else:
            await backend.send(load=session_pb2.LoadReport(draining=True))
        await s.ready()
        s.list()
        s.list(backend)

        async def both_read() -> bool:
            return s.listings.empty()

        await until(both_read)
        assert (await s.ask().fault()).reason == errors_pb2.ERROR_REASON_NO_BACKEND
        await backend.send(text_chunk(number, 0, "x", 1, finish_reason=STOP))
        await running.last()


# What a backend may send


async def test_a_request_too_large_for_a_backend_fails_alone():
    async with scene() as s:
        backend = await s.backend("a")
        s.list(backend)
        await s.ready(backend)
        other = s.ask()
        number, _ = await backend.next_start()
        fault = await s.ask(prompt="x" * (4 * 1024 * 1024 - 100)).fault()
        assert fault.reason == errors_pb2.ERROR_REASON_TOO_LARGE
        assert fault.work is Work.NOT_DISPATCHED
        await backend.send(text_chunk(number, 0, "x", 1, finish_reason=STOP))
        await other.last()
        assert backend.sessions == 1


async def test_requests_gathered_in_one_message_stay_within_what_a_backend_takes():
    async with scene() as s:
        backend = await s.backend("a")
        s.list(backend)
        await s.ready(backend)
        answers = [s.ask(prompt="x" * size) for size in (900_000, 3_500_000)]
        for _ in answers:
            number, _request = await backend.next_start()
            await backend.send(text_chunk(number, 0, "x", 1, finish_reason=STOP))
        for answer in answers:
            await answer.last()
        assert backend.sessions == 1


@pytest.mark.parametrize(
    "bad",
    [
        lambda n: Frame(stream=n, chunk=GARBAGE, last=True),
        lambda n: Frame(stream=n, error=GARBAGE, last=True),
    ],
    ids=["chunk", "error"],
)
async def test_a_frame_that_cannot_be_read_ends_its_request_alone(bad):
    async with scene() as s:
        backend = await s.backend("a")
        s.list(backend)
        await s.ready(backend)
        answers = [s.ask(), s.ask()]
        first, _ = await backend.next_start()
        second, _ = await backend.next_start()
        await backend.send(bad(first), text_chunk(second, 0, "x", 1, finish_reason=STOP))
        fault = await answers[0].fault()
        assert fault.code is grpc.StatusCode.UNAVAILABLE
        assert fault.work is not Work.NOT_DISPATCHED
        assert (await answers[1].last()).text == "x"
        assert backend.sessions == 1


async def test_chunks_that_cannot_be_read_after_a_loss_end_their_request_alone():
    async with scene() as s:
        backend = await s.backend("a")
        s.list(backend)
        await s.ready(backend)
        answers = [s.ask(), s.ask()]
        first, _ = await backend.next_start()
        second, _ = await backend.next_start()
        outlet = answers[0]
        outlet.chunk = lambda raw, *, last, tokens: outlet.chunks.append(raw)  # type: ignore[method-assign]
        await backend.send(
            Frame(stream=first, chunk=GARBAGE, tokens=1), text_chunk(second, 0, "x", 1)
        )
        await answers[1].has_chunks(1)
        await backend.crash()
        for answer in answers:
            fault = await answer.fault()
            assert fault.work is Work.OUTPUT_SEEN
            assert fault.metadata["tokens_delivered"] == "1"


async def test_an_answer_resumed_at_the_wrong_place_ends_once():
    async with scene() as s:
        backends = {name: await s.backend(name) for name in ("a", "b")}
        s.list(*backends.values())
        await s.ready(*backends.values())
        answer = s.ask()
        first, second = await order_of(s, backends)
        number, _ = await first.next_start()
        await first.send(text_chunk(number, 0, "x", 1))
        await answer.has_chunks(1)
        await first.crash()
        number, _ = await second.next_start()
        await second.send(text_chunk(number, 7, "y", 8))
        await answer.fault()

        async def told() -> bool:
            return second.cancelled == [number]

        await until(told)
        await second.send(text_chunk(number, 8, "", finish_reason=pb.FINISH_REASON_CANCELLED))

        async def idle() -> bool:
            return not any(u.backend.in_flight for u in s.pool.uplinks())

        await until(idle)
        assert len(answer.ends) == 1


# Retrying, resuming, and what is said of it


async def order_of(s, backends):
    """The backend that has the one running request, and the other one."""
    busy = next(u.backend.id for u in s.pool.uplinks() if u.backend.in_flight)
    (other,) = backends.keys() - {busy}
    return backends[busy], backends[other]


async def test_a_resumed_answer_waits_for_a_slot_beyond_its_time_to_first_token():
    async with scene() as s:
        backends = {name: await s.backend(name) for name in ("a", "b")}
        s.list(*backends.values())
        await s.ready(*backends.values())
        routing = pb.Routing()
        routing.ttft_slo.FromMilliseconds(250)
        answer = s.ask(routing=routing)
        first, second = await order_of(s, backends)
        number, _ = await first.next_start()
        await first.send(text_chunk(number, 0, "x", 1))
        await second.send(load=BUSY)
        await answer.has_chunks(1)

        async def busy() -> bool:
            return s.pool.uplink(second.id).backend.tracker.view().load.running == 1

        await until(busy)
        await first.crash()

        async def in_line() -> bool:
            return len(s.routing.line) == 1 or bool(answer.ends)

        await until(in_line)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.4):
                await answer.fault()
        await second.send(load=FREE)
        number, request = await second.next_start()
        assert list(request.continuation.token_ids) == [1]
        await second.send(text_chunk(number, 1, "y", 2, finish_reason=STOP))
        last = await answer.last()
        assert last.receipt.resumed_at_tokens == [1]


async def test_work_is_as_far_along_as_any_attempt_got():
    async with scene() as s:
        backends = {name: await s.backend(name) for name in ("a", "b")}
        s.list(*backends.values())
        await s.ready(*backends.values())
        answer = s.ask()
        first, second = await order_of(s, backends)
        await first.next_start()
        await first.crash()
        await second.refuse(Fault(errors_pb2.ERROR_REASON_INVALID_REQUEST, "no such grammar"))
        fault = await answer.fault()
        assert fault.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
        assert fault.work is Work.MAYBE_BILLED


async def test_a_request_that_waited_after_a_loss_may_have_been_billed():
    async with scene(max_queue_time=0.2) as s:
        backends = {name: await s.backend(name) for name in ("a", "b")}
        s.list(*backends.values())
        await s.ready(*backends.values())
        answer = s.ask()
        first, second = await order_of(s, backends)
        await first.next_start()
        await second.send(load=BUSY)

        async def busy() -> bool:
            return s.pool.uplink(second.id).backend.tracker.view().load.running == 1

        await until(busy)
        await first.crash()
        fault = await answer.fault()
        assert fault.reason == errors_pb2.ERROR_REASON_OVERLOADED
        assert fault.work is Work.MAYBE_BILLED


async def test_backends_that_all_refuse_for_load_are_overload_and_nothing_ran():
    async with scene() as s:
        backends = [await s.backend(f"b{n}") for n in range(5)]
        s.list(*backends)
        await s.ready(*backends)
        answer = s.ask()
        full = Fault(errors_pb2.ERROR_REASON_OVERLOADED, "full", retry_after=1.0)
        async with asyncio.TaskGroup() as group:
            refusing = [group.create_task(backend.refuse(full)) for backend in backends]
            fault = await answer.fault()
            for task in refusing:
                task.cancel()
        assert fault.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert fault.retry_after
        assert fault.work is Work.NOT_DISPATCHED


@pytest.mark.parametrize("reason", ["CREDENTIAL_REJECTED", "DRAINING"])
async def test_what_a_backend_says_to_the_router_is_not_said_to_its_caller(reason):
    async with scene() as s:
        backend = await s.backend("a")
        s.list(backend)
        await s.ready(backend)
        answer = s.ask()
        number = getattr(errors_pb2, f"ERROR_REASON_{reason}")
        await backend.refuse(Fault(number, "for the router alone"))
        fault = await answer.fault()
        assert fault.reason == errors_pb2.ERROR_REASON_NO_BACKEND
        assert fault.code is grpc.StatusCode.UNAVAILABLE
        assert fault.retry_after
        assert fault.work is Work.NOT_DISPATCHED


async def test_the_receipt_of_an_answer_in_the_preferred_tier_names_no_overflow():
    async with scene() as s:
        local = await s.backend("local")
        cloud = await s.backend("cloud", pb.TIER_CLOUD)
        s.list(local, cloud)
        await s.ready(local, cloud)
        await local.send(load=BUSY)

        async def busy() -> bool:
            return s.pool.uplink("local").backend.tracker.view().load.running == 1

        await until(busy)
        answer = s.ask()
        await local.send(load=FREE)

        async def free() -> bool:
            return s.pool.uplink("local").backend.tracker.view().load.running == 0

        await until(free)
        await cloud.refuse(Fault(errors_pb2.ERROR_REASON_PROVIDER_ERROR, "down"))
        number, _ = await local.next_start()
        await local.send(text_chunk(number, 0, "x", 1, finish_reason=STOP))
        receipt = (await answer.last()).receipt
        assert [a.backend_id for a in receipt.attempts] == ["cloud", "local"]
        assert receipt.tier == pb.TIER_LOCAL
        assert receipt.overflow_reason == pb.OVERFLOW_REASON_UNSPECIFIED
