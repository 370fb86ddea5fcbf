"""A router's own parts among backends, callers, money and policies that do anything in any order.

The backends answer as one model would: each token follows from prompt and position, so that
whoever goes on with an answer must be told exactly where. Everybody notes down what must not be.
What happens next is drawn from a seed; the moment at which it happens is the machine's.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import grpc
import pytest

from anabranch.v1 import errors_pb2, relay_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.authn import Principal
from services.chassis.errors import Fault, Work, reason_name, to_status
from services.chassis.model_handler import CallContext
from services.router.core.policy import (
    AdmissionRules,
    Algorithm,
    BreakerRules,
    Budget,
    HedgeRules,
    ModelRules,
    Objective,
    Policy,
    RetryRules,
    TenantRules,
)
from services.router.hedge import Hedge
from services.router.uplink import Uplink
from services.router.waiting_line import WaitingLine
from tests.support.scripted_backends import Backend, Frame, Scene, scene
from tests.support.waiting import BOUND_S, until

NAMES = {pb.TIER_LOCAL: "river-small", pb.TIER_CLOUD: "river-large"}
LARGEST_BUDGET = 3000
TENANTS = ("shop", "shop", "free", "lab")
"""`shop` has a budget, `free` has none, nothing of `lab` may leave."""
PRICES = pb.TokenPrices(input=1_000_000, output=1_000_000)
MOST = {"backends": 5, "open": 25}
_SLOTS = 4
_BASE = Policy(
    objective=Objective(ttft=1.0),
    slow_start=0.05,
    breaker=BreakerRules(consecutive=2, rest=0.03, longest_rest=0.1, silence=0.25, window=0.5),
    retry=RetryRules(attempts=6),
    hedge=HedgeRules(enabled=True, share=1.0, after=1.0, soonest=0.004),
    admission=AdmissionRules(max_waiting=12, max_wait=0.6),
    models={"river": ModelRules(local="river-small", cloud="river-large")},
    mask=frozenset({"email"}),
    tenants={
        "shop": TenantRules(cloud_budget=Budget(LARGEST_BUDGET)),
        "lab": TenantRules(cloud=False),
    },
)
POLICIES = (
    _BASE,
    replace(_BASE, hedge=replace(_BASE.hedge, share=0.3), algorithm=Algorithm.LEAST_OUTSTANDING),
    replace(_BASE, hedge=HedgeRules(enabled=False), retry=RetryRules(ratio=0.0, per_second=1.0)),
    replace(_BASE, tenants={**_BASE.tenants, "shop": TenantRules(cloud_budget=Budget(500))}),
    replace(_BASE, cloud_budget=Budget(LARGEST_BUDGET), algorithm=Algorithm.POWER_OF_TWO),
    replace(
        _BASE,
        admission=AdmissionRules(max_waiting=2, max_wait=0.05, codel_target=0.01),
        breaker=replace(_BASE.breaker, silence=5.0),
    ),
)
_NOT_BEGUN = (
    errors_pb2.ERROR_REASON_OVERLOADED,
    errors_pb2.ERROR_REASON_DRAINING,
    errors_pb2.ERROR_REASON_UNSUPPORTED,
)
_BEGUN = (
    errors_pb2.ERROR_REASON_INTERNAL,
    errors_pb2.ERROR_REASON_PROVIDER_ERROR,
    errors_pb2.ERROR_REASON_INVALID_REQUEST,
)
# What a caller may hear, whatever happened; anything else is a bug.
_HEARD = {
    *_NOT_BEGUN,
    *_BEGUN,
    errors_pb2.ERROR_REASON_BACKEND_LOST,
    errors_pb2.ERROR_REASON_NO_BACKEND,
    errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
    errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED,
    errors_pb2.ERROR_REASON_ACCESS_DENIED,
    errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
} - {errors_pb2.ERROR_REASON_DRAINING}


def token_at(prompt: str, position: int) -> int:
    return zlib.crc32(f"{prompt}/{position}".encode()) % 50_000 + 1


def text_of(prompt: str, first: int, end: int) -> str:
    return "".join(f" {token_at(prompt, at)}" for at in range(first, end))


class Question:
    """A request, its caller, and all that anybody did about it."""

    def __init__(self, prompt: str, request: pb.GenerateRequest, tenant: str) -> None:
        self.prompt = prompt
        self.request = request
        self.asked = pb.GenerateRequest()
        self.asked.CopyFrom(request)  # the router writes into its own
        self.tenant = tenant
        self.limit = request.sampling.max_tokens
        self.wrong: list[str] = []
        self.sent_to: list[str] = []
        self.begun = 0  # by so many backends, whatever became of it there
        self.cancel: Any = None
        self.cancelled = False
        self.breaks = False
        self.ends: list[str] = []
        self._text = ""
        self._tokens = 0

    @property
    def over(self) -> bool:
        return bool(self.ends)

    def note(self, what: str) -> None:
        self.wrong.append(f"{self.prompt}: {what}")

    # The outlet

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        if self.breaks:
            self.breaks = False
            raise RuntimeError("a bug of ours")
        chunk = pb.GenerateChunk.FromString(raw)
        if self.ends:
            self.note(f"a chunk after its end: {chunk}")
        self._text += chunk.text
        self._tokens += tokens
        if self._text != text_of(self.prompt, 0, self._tokens):
            self.note(f"heard {self._text!r}")
        if last:
            self._ended_with(chunk)

    def fail(self, fault: Fault) -> None:
        self.ends.append(reason_name(fault.reason))
        if len(self.ends) > 1:
            self.note(f"ended again: {self.ends}")
        if fault.reason == errors_pb2.ERROR_REASON_INTERNAL and "incident" in fault.metadata:
            return  # the bug that was asked for
        if fault.reason not in _HEARD:
            self.note(f"failed with {fault!r}")
        said = fault.metadata.get("tokens_delivered")
        if said is not None and int(said) != self._tokens:
            self.note(f"{said} tokens said to be delivered, not {self._tokens}")
        if fault.work is Work.NOT_DISPATCHED and (self.begun or self._tokens):
            self.note(f"said not to have been begun: {fault!r}")

    def _ended_with(self, chunk: pb.GenerateChunk) -> None:
        self.ends.append(pb.FinishReason.Name(chunk.finish_reason))
        if len(self.ends) > 1:
            self.note(f"ended again: {self.ends}")
        if chunk.finish_reason == pb.FINISH_REASON_LENGTH:
            if self._tokens != self.limit:
                self.note(f"whole after {self._tokens} tokens of {self.limit}")
        elif chunk.finish_reason != pb.FINISH_REASON_CANCELLED or not self.cancelled:
            self.note(f"ended with {chunk.finish_reason}")
        attempts = sorted(attempt.backend_id for attempt in chunk.receipt.attempts)
        if attempts != sorted(self.sent_to):
            self.note(f"the receipt names {attempts}, it was sent to {self.sent_to}")


class Job:
    """A request at a backend."""

    def __init__(self, question: Question, request: pb.GenerateRequest, at: int) -> None:
        self.question = question
        self.at = at
        self.max_cost: int | None = None
        if request.routing.HasField("max_cost_microusd"):
            self.max_cost = request.routing.max_cost_microusd
        self.cancelled = False


class Worker(Backend):
    """A backend that checks what it is asked, and answers when the world says so."""

    def __init__(self, id: str, tier: pb.Tier.ValueType, questions: dict[str, Question]) -> None:
        resumes = [pb.CAPABILITY_RESUME_TEXT]
        if tier == pb.TIER_LOCAL:
            resumes.append(pb.CAPABILITY_RESUME_TOKENS)
        prices = PRICES if tier == pb.TIER_CLOUD else None
        super().__init__(id, tier, resumes, models=[NAMES[tier]], prices=prices)
        self.tier = tier
        self.jobs: dict[int, Job] = {}
        self.wrong: list[str] = []
        self._questions = questions
        self._starts_seen = 0
        self._cut = asyncio.Event()

    async def _session(self, requests: Any, context: grpc.aio.ServicerContext) -> None:
        await self.may_greet.wait()
        self.jobs.clear()
        self._starts_seen = 0
        self._cut.clear()
        await context.write(relay_pb2.RelaySessionResponse(ready=self._ready))
        self._context = context
        reading = asyncio.create_task(self._read(requests))
        cut = asyncio.create_task(self._cut.wait())
        try:
            await asyncio.wait((reading, cut), return_when=asyncio.FIRST_COMPLETED)
        finally:
            reading.cancel()
            cut.cancel()
            if self._context is context:
                self._context = None
                self.jobs.clear()
        if self._cut.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    async def _read(self, requests: Any) -> None:
        async for message in requests:
            for frame in message.frames:
                if frame.WhichOneof("action") == "cancel":
                    if frame.stream in self.jobs:
                        self.jobs[frame.stream].cancelled = True
                else:
                    self._begin(frame)

    def _begin(self, frame: relay_pb2.RelaySessionRequestFrame) -> None:
        request = pb.GenerateRequest.FromString(frame.start)
        question = self._questions[request.prompt]
        self._starts_seen += 1
        given = request.continuation
        at = len(given.token_ids) or given.text.count(" ")
        job = self.jobs[frame.stream] = Job(question, request, at)
        question.begun += 1
        if list(given.token_ids) != [token_at(request.prompt, n) for n in range(at)][
            : len(given.token_ids)
        ] or given.text != text_of(request.prompt, 0, at):
            question.note(f"to be gone on with after {given}")
        if request.sampling.max_tokens + at != question.limit:
            question.note(f"{request.sampling.max_tokens} tokens asked for after {at}")
        if request.model != NAMES[self.tier]:
            question.note(f"asked for as {request.model!r}")
        if not request.timeout.ToNanoseconds():
            question.note("no deadline")
        own = question.asked.routing
        allowed = own.max_cost_microusd if own.HasField("max_cost_microusd") else None
        if self.tier == pb.TIER_CLOUD:
            if own.residency == pb.RESIDENCY_LOCAL_ONLY or question.tenant == "lab":
                question.note("it left")
            if list(frame.mask) != [pb.PII_KIND_EMAIL]:
                question.note(f"left with only {frame.mask} masked")
            if question.tenant == "shop" and job.max_cost is None:
                question.note("may cost anything")
            if allowed is not None and (job.max_cost is None or job.max_cost > allowed):
                question.note(f"may cost {job.max_cost}, not {allowed}")
        else:
            if own.residency == pb.RESIDENCY_CLOUD_ONLY:
                question.note("it stayed")
            if (job.max_cost is None) != (allowed is None):
                question.note(f"a limit of {job.max_cost} came along, not {allowed}")

    # What the world makes it do; nothing once its session is over.

    async def tell(self, *frames: Frame, **said: Any) -> None:
        context = self._context
        if context is None:
            return
        busy = sum(not job.cancelled for job in self.jobs.values())
        load = said.pop("load", None) or self.load(busy)
        with suppress(Exception):  # whatever grpc says of a session that is just over
            await context.write(relay_pb2.RelaySessionResponse(frames=frames, load=load, **said))

    def load(self, running: int) -> session_pb2.LoadReport:
        return session_pb2.LoadReport(
            running=min(running, _SLOTS),
            max_running=_SLOTS,
            starts_seen=self._starts_seen,
            step_time={"nanos": 1_000_000},
        )

    def goes_on(self, number: int, most: int, cost: random.Random) -> Frame:
        """The next tokens of a job, or its end when there are no more, or it was cancelled."""
        job = self.jobs[number]
        prompt, limit = job.question.prompt, job.question.limit
        first, end = job.at, min(job.at + most, limit)
        if job.cancelled:
            end = first
        last = end >= limit or job.cancelled
        job.at = end
        chunk = pb.GenerateChunk(first_token=first, text=text_of(prompt, first, end))
        if self.tier == pb.TIER_LOCAL:
            chunk.token_ids.extend([token_at(prompt, at) for at in range(first, end)])
        if last:
            del self.jobs[number]
            chunk.finish_reason = (
                pb.FINISH_REASON_CANCELLED if job.cancelled else pb.FINISH_REASON_LENGTH
            )
            if self.tier == pb.TIER_CLOUD:
                allowed = 50 if job.max_cost is None else job.max_cost
                chunk.receipt.cost_microusd = cost.randint(0, allowed)
        return Frame(stream=number, chunk=chunk.SerializeToString(), last=last, tokens=end - first)

    def fails(self, number: int, draw: random.Random) -> Frame:
        """The error that a job ends with."""
        job = self.jobs.pop(number)
        begun = draw.random() < 0.5
        reason = draw.choice(_BEGUN if begun else _NOT_BEGUN)
        work = Work.MAYBE_BILLED if begun else Work.NOT_DISPATCHED
        if not begun:
            job.question.begun -= 1
        status = to_status(Fault(reason, "as it was drawn", work=work))
        return Frame(stream=number, error=status.SerializeToString(), last=True)

    def cut(self) -> None:
        """The session ends, and whatever ran there is lost."""
        self._cut.set()


class World:
    """All of it, and what may happen to it: each public method without arguments is one event."""

    def __init__(self, running: Scene, seed: int) -> None:
        self.draw = random.Random(seed)
        self.scene = running
        self.policy = POLICIES[0]
        self.questions: dict[str, Question] = {}
        self.workers: list[Worker] = []
        self.gone: list[Worker] = []
        self.log: list[str] = []
        self._names = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, seed: int) -> AsyncIterator[World]:
        worlds: list[World] = []

        def in_force() -> Policy:
            return worlds[0].policy if worlds else POLICIES[0]

        with pytest.MonkeyPatch.context() as patch:
            async with scene(in_force=in_force) as running:
                world = cls(running, seed)
                worlds.append(world)
                patch.setattr(Uplink, "start", world._noting(Uplink.start))
                for tier in (pb.TIER_LOCAL, pb.TIER_LOCAL, pb.TIER_CLOUD):
                    await world._new_worker(tier)
                await running.ready(*world.workers)
                yield world

    def _noting(self, start: Any) -> Any:
        def started(uplink: Uplink, request: bytes, *others: Any) -> int:
            prompt = pb.GenerateRequest.FromString(request).prompt
            self.questions[prompt].sent_to.append(uplink.backend.id)
            number: int = start(uplink, request, *others)
            return number

        return started

    async def run(self, steps: int) -> None:
        """So many events; then all must come to an end, and nothing be left."""
        # Each run has its own mixture: where everything always happens, little gets far.
        events = [e for e in EVENTS for _ in range(self.draw.choice((0, 1, 1, 2, 4)))]
        events += [World.somebody_asks, World.a_backend_goes_on] * (2 + len(events) // 4)
        for _ in range(steps):
            event = self.draw.choice(events)
            self.log.append(event.__name__)
            await event(self)
            await asyncio.sleep(self.draw.choice((0, 0, 0, 0.001, 0.005)))
            self.check()
        await self.settle()

    # What may happen

    async def somebody_asks(self) -> None:
        if sum(not q.over for q in self.questions.values()) >= MOST["open"]:
            return
        draw = self.draw
        prompt = f"question {len(self.questions)} " + "x" * draw.choice((0, 0, 0, 400))
        routing = pb.Routing(
            residency=draw.choice(
                (
                    0,
                    0,
                    0,
                    pb.RESIDENCY_LOCAL_ONLY,
                    pb.RESIDENCY_CLOUD_FIRST,
                    pb.RESIDENCY_CLOUD_ONLY,
                )
            ),
            priority=draw.choice((0, 0, pb.PRIORITY_BATCH, pb.PRIORITY_SYSTEM)),
        )
        if draw.random() < 0.2:
            routing.ttft_slo.FromMilliseconds(draw.choice((20, 200, 2000)))
        if draw.random() < 0.2:
            routing.max_cost_microusd = draw.choice((1, 60, 1000))
        request = pb.GenerateRequest(
            model="river",
            prompt=prompt,
            routing=routing if draw.random() < 0.7 else None,
            sampling=pb.Sampling(max_tokens=draw.randint(1, 30)),
        )
        question = self.questions[prompt] = Question(prompt, request, draw.choice(TENANTS))
        principal = Principal("c", question.tenant, frozenset({"generate"}), float("inf"), "t")
        time = draw.choice((600, 600, 600, 0.1))
        context = CallContext(principal, prompt, asyncio.get_running_loop().time() + time)
        try:
            question.cancel = self.scene.handler.open(request, context, question)
        except Fault as fault:
            question.fail(fault)

    async def somebody_leaves(self) -> None:
        waiting = [q for q in self.questions.values() if not q.over]
        if waiting:
            question = self.draw.choice(waiting)
            question.cancelled = True
            question.breaks = False  # it would meet its bug in its own turn
            question.cancel()

    async def a_bug_of_ours_shows(self) -> None:
        waiting = [q for q in self.questions.values() if not q.over]
        if waiting:
            self.draw.choice(waiting).breaks = True

    async def a_backend_goes_on(self) -> None:
        worker = self._worker()
        numbers = [n for n in worker.jobs if self.draw.random() < 0.7]
        most = self.draw.randint(1, 20)
        frames = [worker.goes_on(n, most, self.draw) for n in numbers]
        if frames:
            await worker.tell(*frames)

    async def a_request_fails(self) -> None:
        worker = self._worker()
        if worker.jobs:
            number = self.draw.choice(list(worker.jobs))
            await worker.tell(worker.fails(number, self.draw))

    async def a_session_breaks(self) -> None:
        worker = self._worker()
        if self.draw.random() < 0.2:
            worker.may_greet.clear()
        worker.cut()

    async def one_greets_at_last(self) -> None:
        for worker in self.workers:
            worker.may_greet.set()

    async def a_backend_says_it_is_full(self) -> None:
        worker = self._worker()
        await worker.tell(load=worker.load(_SLOTS))

    async def a_backend_says_it_is_free(self) -> None:
        worker = self._worker()
        await worker.tell(load=worker.load(0))

    async def a_backend_wants_to_leave(self) -> None:
        worker = self._worker()
        await worker.tell(go_away=session_pb2.GoAway(reason="leaving"))
        if self.draw.random() < 0.7:
            worker.cut()

    async def a_backend_vanishes(self) -> None:
        if len(self.workers) > 1:
            self.gone.append(self.workers.pop(self.draw.randrange(len(self.workers))))
            self._list()

    async def a_backend_returns(self) -> None:
        if self.gone and len(self.workers) < MOST["backends"]:
            self.workers.append(self.gone.pop(self.draw.randrange(len(self.gone))))
            self._list()

    async def a_backend_comes(self) -> None:
        if len(self.workers) < MOST["backends"]:
            await self._new_worker(self.draw.choice((pb.TIER_LOCAL, pb.TIER_LOCAL, pb.TIER_CLOUD)))

    async def an_operator_drains(self) -> None:
        self.scene.pool.set_drained(self._worker().id, self.draw.random() < 0.3)

    async def a_breaker_is_reset(self) -> None:
        uplink = self.scene.pool.uplink(self._worker().id)
        if uplink is not None:
            uplink.backend.reset_breaker()

    async def the_policy_changes(self) -> None:
        self.policy = self.draw.choice(POLICIES)

    async def silence_is_looked_for(self) -> None:
        for uplink in self.scene.pool.uplinks():
            uplink.end_if_silent()

    async def time_passes(self) -> None:
        await asyncio.sleep(self.draw.choice((0.01, 0.03, 0.1)))

    def _worker(self) -> Worker:
        return self.draw.choice(self.workers + self.gone)

    async def _new_worker(self, tier: pb.Tier.ValueType) -> None:
        self._names += 1
        worker = Worker(f"{pb.Tier.Name(tier)[5:].lower()}-{self._names}", tier, self.questions)
        await worker.open()
        self.scene.stack.push_async_callback(worker.server.stop, 0)
        self.workers.append(worker)
        self._list()

    def _list(self) -> None:
        self.scene.list(*self.workers)

    # What must hold

    def check(self) -> None:
        """Holds at every moment."""
        wrong = [what for question in self.questions.values() for what in question.wrong]
        routing = self.scene.routing
        for account, known in routing.spending._budget._accounts.items():
            book = known.book
            if book is not None:
                out = book.spent + book.reserved
                if not 0 <= out <= book.granted <= LARGEST_BUDGET or book.reserved < 0:
                    wrong.append(f"{account}: {out} of {book.granted} is out")
        for uplink in self.scene.pool.uplinks():
            if uplink.backend.in_flight != len(uplink._receivers):
                wrong.append(f"{uplink.backend.id} has {uplink.backend.in_flight} in flight")
        assert not wrong, (wrong, self.log)

    async def settle(self) -> None:
        """Everybody answers what is asked; then nothing is left anywhere."""
        for worker in self.workers + self.gone:
            worker.may_greet.set()
            self.scene.pool.set_drained(worker.id, False)
        async with asyncio.timeout(BOUND_S):
            while self.scene.handler._exchanges or self._busy():
                for worker in self.workers + self.gone:
                    frames = [worker.goes_on(n, 100, self.draw) for n in list(worker.jobs)]
                    await worker.tell(*frames)
                await asyncio.sleep(0.005)
                self.check()
        left = [q.prompt for q in self.questions.values() if not q.over]
        assert not left, (left, self.log)
        await until(self._nothing_is_left)
        self.check()

    def _busy(self) -> bool:
        return any(uplink._receivers for uplink in self.scene.pool.uplinks())

    async def _nothing_is_left(self) -> bool:
        routing = self.scene.routing
        kept: list[object] = [len(routing.line), len(routing.line._seats), routing.line._timer]
        for known in routing.spending._budget._accounts.values():
            kept.append(known.book.reserved if known.book is not None else 0)
        for uplink in self.scene.pool.uplinks():
            kept += [uplink.backend.in_flight, uplink._sent_in, uplink._decoding]
            kept += [uplink._outgoing, uplink._receivers]
        kept += [
            handle
            for handle in getattr(asyncio.get_running_loop(), "_scheduled", ())
            if not handle.cancelled()
            and isinstance(getattr(handle._callback, "__self__", None), Hedge | WaitingLine)
        ]
        return not any(kept)


EVENTS = (
    World.somebody_leaves,
    World.a_bug_of_ours_shows,
    World.a_request_fails,
    World.a_session_breaks,
    World.one_greets_at_last,
    World.a_backend_says_it_is_full,
    World.a_backend_says_it_is_free,
    World.a_backend_wants_to_leave,
    World.a_backend_vanishes,
    World.a_backend_returns,
    World.a_backend_comes,
    World.an_operator_drains,
    World.a_breaker_is_reset,
    World.the_policy_changes,
    World.silence_is_looked_for,
    World.time_passes,
)
