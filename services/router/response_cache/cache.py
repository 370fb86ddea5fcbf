"""Answers requests from what was answered before, or is being answered, and keeps new answers.

In this order: memory, a request under way, slower tiers, a backend. Whatever fails in a tier, the
request goes to a backend as if there were no cache.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import fault_of
from services.chassis.model_handler import CallContext, Cancel, Outlet
from services.router.core.policy import CacheRules, Policy
from services.router.response_cache.cacheable import is_deterministic, is_keepable
from services.router.response_cache.entry import Entry, entry_of, time_left
from services.router.response_cache.flights import Flight
from services.router.response_cache.key import AnswerKey, Circumstances, answer_key
from services.router.response_cache.participant import Participant, Start
from services.router.response_cache.stores import Stores

_LONGEST_FLIGHT_S = 3600.0
"""As long as any request may take. Each caller leaves at its own deadline."""


class ResponseCache:
    """The cache of one router process.

    `policy` gives the policy in force. `epoch_clock` is in seconds of the epoch, by which stores
    that are shared tell the age of an answer; `loop_clock` is that of deadlines. `weights` tells
    what local backends serve under a name: those that were swapped answer otherwise.
    """

    def __init__(
        self,
        policy: Callable[[], Policy],
        stores: Stores,
        epoch_clock: Callable[[], float],
        loop_clock: Callable[[], float],
        weights: Callable[[str], str] = lambda _: "",
    ) -> None:
        self._policy = policy
        self._weights = weights
        self._memory, self._slower, self._tasks = stores
        self._now = epoch_clock
        self._loop_clock = loop_clock
        self._flights: dict[AnswerKey, Flight] = {}
        self._running: set[Flight] = set()
        self.hits: Counter[int] = Counter()
        self.misses = 0
        self.stored = 0

    @property
    def held(self) -> Mapping[str, int]:
        """Bytes held, by the tier's name, where that is known."""
        held = {"memory": self._memory.held}
        return held | {tier.name: tier.held for tier in self._slower if tier.held is not None}

    @property
    def dropped(self) -> Mapping[str, int]:
        """Entries that were not written, by the tier's name."""
        return {tier.name: tier.dropped for tier in self._slower}

    def serves(self, tenant: str) -> bool:
        """Whether a tenant's answers are kept at all. Asked for every request: it must be quick."""
        policy = self._policy()
        return policy.tenant(tenant).cache and policy.cache.enabled

    def takes(self, request: pb.GenerateRequest, model: str) -> bool:
        """Whether the answer of this model may be kept, and there is only one such answer."""
        rules = self._policy().models.get(model)
        return (rules is None or rules.cache) and is_deterministic(request)

    def open(
        self,
        request: pb.GenerateRequest,
        context: CallContext,
        outlet: Outlet,
        start: Start,
        model: str,
    ) -> Cancel:
        """Answers a request that it takes, with `start` where no answer is known.

        `model` is what the request's name stands for. Raises Fault as `start` does.
        """
        policy = self._policy()
        resolved = "" if model == request.model else model
        asked = Participant(
            request, context, outlet, start, time.monotonic, policy, resolved_model=resolved
        )
        key = answer_key(request, self._circumstances(policy, context, model))
        key = key._replace(cipher=context.caller.cipher)
        known = self._memory.get(key)
        if known is not None and self._time_left(known, policy.cache) > 0:
            self.hits[pb.CACHE_SOURCE_MEMORY] += 1
            asked.take(known, pb.CACHE_SOURCE_MEMORY)
        else:
            self._enter(asked, key, ask_slower=True)
        return asked.cancel

    def cancel_request(self, request_id: str) -> bool:
        """Cancels a request that waits for an answer here; false when there is none."""
        found = [
            participant
            for flight in self._running
            for participant in flight.participants
            if participant.context.request_id == request_id
        ]
        for participant in found:
            participant.cancel()
        return bool(found)

    def _enter(self, asked: Participant, key: AnswerKey, *, ask_slower: bool) -> None:
        under_way = self._flights.get(key)
        if under_way is not None and under_way.takes(asked):
            under_way.join(asked)
            return
        flight = Flight(
            key,
            asked,
            self,
            longest=self._policy().cache.max_answer_bytes,
            deadline=max(asked.context.deadline, self._loop_clock() + _LONGEST_FLIGHT_S),
        )
        self._flights[key] = flight
        self._running.add(flight)
        if ask_slower and not all(tier.resting for tier in self._slower):
            self._tasks.create_task(self._look_up(flight))
            return
        try:
            self._send(flight)
        except Exception:
            flight.dissolve()
            raise

    async def _look_up(self, flight: Flight) -> None:
        rules = self._policy().cache
        for place, tier in enumerate(self._slower):
            entry = await tier.get(flight.key, rules.max_answer_bytes)
            if flight.over:
                return  # everybody left
            if entry is not None and (left := self._time_left(entry, rules)) > 0:
                self._memory.put(flight.key, entry)
                for faster in self._slower[:place]:
                    faster.offer(flight.key, entry, left)
                self.hits[tier.source] += len(flight.participants)
                flight.answer(entry, tier.source)
                return
        if flight.over:
            return
        try:
            self._send(flight)
        except Exception as exc:  # noqa: BLE001 - the edge: whatever a handler raises becomes a status
            flight.fail(fault_of(exc))

    def _send(self, flight: Flight) -> None:
        self.misses += 1
        if flight.owner.policy is not self._policy():
            # What it is called in the tiers, or what is masked, may no longer be what the key says.
            flight.keep_nothing()
        flight.send()

    def _time_left(self, entry: Entry, rules: CacheRules) -> float:
        """By the rules of now, which may be stricter than when it was kept."""
        if entry.size > rules.max_answer_bytes:
            return 0.0
        return time_left(entry, rules.ttl, self._now())

    # Follower of flights

    def closed(self, flight: Flight) -> None:
        """See Follower."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        if flight.over:
            self._running.discard(flight)

    def answered(self, flight: Flight, last: pb.GenerateChunk, shared_by: int) -> None:
        """See Follower: the answer is kept, where it is whole and not too long."""
        self.hits[pb.CACHE_SOURCE_IN_FLIGHT] += shared_by
        if flight.chunks is None or not is_keepable(last):
            return
        rules = self._policy().cache
        entry = entry_of(flight.chunks, last, flight.tokens, self._now())
        if entry is None or entry.size > rules.max_answer_bytes:
            return
        self.stored += 1
        self._memory.put(flight.key, entry)
        for tier in self._slower:
            tier.offer(flight.key, entry, rules.ttl)

    def start_again(self, flight: Flight, participants: Sequence[Participant]) -> None:
        """See Follower."""
        for participant in participants:
            try:
                self._enter(participant, flight.key, ask_slower=False)
            except Exception as exc:  # noqa: BLE001 - as above
                participant.fail(fault_of(exc))

    def _circumstances(self, policy: Policy, context: CallContext, model: str) -> Circumstances:
        tenant = context.caller.tenant
        rules = policy.models.get(model)
        local = (rules.local if rules is not None else None) or model
        return Circumstances(
            tenant=tenant,
            model=model,
            local=local,
            cloud=(rules.cloud if rules is not None else None) or model,
            leaves=policy.tenant(tenant).cloud,
            # A relay's own wishes are kinds, which are numbers.
            masked=policy.masked_for(tenant).union(map(str, context.mask)),
            weights=self._weights(local),
        )
