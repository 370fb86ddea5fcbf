"""A router's own parts among backends, callers, money and policies that do anything in any order.

The backends answer as one model would: each token follows from prompt and position, so that
whoever goes on with an answer must be told exactly where. Everybody notes down what must not be.
What happens next is drawn from a seed; the moment at which it happens is the machine's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import session_pb2
from services.chassis.errors import Fault
from services.chassis.model_handler import CallContext
from services.chassis.principal import Principal
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
from services.router.session_requests import SessionRequests
from services.router.waiting_line import WaitingLine
from tests.support.scripted_backends import Scene, scene
from tests.support.scripted_participants import (
    SLOTS,
    Question,
    Worker,
)
from tests.support.waiting import BOUND_S, until

LARGEST_BUDGET = 3000
TENANTS = ("shop", "shop", "free", "lab")
"""`shop` has a budget, `free` has none, nothing of `lab` may leave."""
MOST = {"backends": 5, "open": 25}
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
                patch.setattr(SessionRequests, "start", world._noting(SessionRequests.start))
                for tier in (pb.TIER_LOCAL, pb.TIER_LOCAL, pb.TIER_CLOUD):
                    await world._new_worker(tier)
                await running.ready(*world.workers)
                yield world

    def _noting(self, start: Any) -> Any:
        def started(requests: SessionRequests, request: bytes, *others: Any) -> int:
            prompt = pb.GenerateRequest.FromString(request).prompt
            self.questions[prompt].sent_to.append(requests._backend.id)
            number: int = start(requests, request, *others)
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
        await worker.tell(load=worker.load(SLOTS))

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
        for account, known in routing.spending.supply.ledger._accounts.items():
            book = known.book
            if book is not None:
                out = book.spent + book.reserved
                if not 0 <= out <= book.granted <= LARGEST_BUDGET or book.reserved < 0:
                    wrong.append(f"{account}: {out} of {book.granted} is out")
        for uplink in self.scene.pool.uplinks():
            if uplink.backend.in_flight != len(uplink.requests):
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
        return any(len(uplink.requests) for uplink in self.scene.pool.uplinks())

    async def _nothing_is_left(self) -> bool:
        routing = self.scene.routing
        kept: list[object] = [len(routing.line), len(routing.line._seats), routing.line._timer]
        for known in routing.spending.supply.ledger._accounts.values():
            kept.append(known.book.reserved if known.book is not None else 0)
        for uplink in self.scene.pool.uplinks():
            kept += [uplink.backend.in_flight, uplink.requests._sent_in, uplink.requests.decoding]
            kept += [len(uplink.requests.outgoing), len(uplink.requests)]
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
