"""The backends that the router knows, kept in step with the registry, and who waits for them.

Owns the sessions and the waiting line; the choice itself is core's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection, Hashable
from typing import Protocol

from services.chassis.auth_client import TokenSource
from services.chassis.host import Tasks
from services.chassis.registry import Instance, Registry
from services.router.core import values
from services.router.core.decide import choose, decide, open_backends
from services.router.core.policy import Policy
from services.router.core.terms import terms_of
from services.router.uplink import Uplink

# Callers make names up; what is remembered of them is bounded.
_REMEMBERED_MODELS = 1000

BACKEND_SERVICES = ("anabranch-engine", "anabranch-cloud")


class Waiter(Protocol):
    """A request in the waiting line."""

    @property
    def claim(self) -> Hashable:
        """What it waits for; equal claims are decided alike."""

    def retry_now(self) -> bool:
        """Decides again; true when the request left the line."""


class Pool:
    """Backends by id, and the line of requests that wait for a free one."""

    def __init__(
        self,
        tokens: TokenSource,
        tasks: Tasks,
        clock: Callable[[], float],
        *,
        policy: Callable[[], Policy],
        max_waiting: int,
        seed: int | None = None,
    ) -> None:
        self._tokens = tokens
        self._tasks = tasks
        self._clock = clock
        self._policy = policy
        self._terms: dict[str, values.Terms] = {}
        self._terms_of: Policy | None = None
        self.max_waiting = max_waiting
        # Breaks ties and spreads reconnects; nothing secret hangs on it.
        self._random = random.Random(seed)  # noqa: S311
        self._uplinks: dict[str, Uplink] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[Waiter, None] = {}
        self._serving_line = False
        self._drained: set[str] = set()
        self._listed: set[str] = set()

    def __len__(self) -> int:
        return len(self._uplinks)

    @property
    def waiting(self) -> int:
        """Requests in the line."""
        return len(self._waiting)

    def uplinks(self) -> list[Uplink]:
        """Every known backend, ordered by id."""
        return [self._uplinks[key] for key in sorted(self._uplinks)]

    def uplink(self, backend_id: str) -> Uplink | None:
        """The backend of this id, if it is known."""
        return self._uplinks.get(backend_id)

    def set_drained(self, backend_id: str, drained: bool) -> None:
        """Nothing new for a backend, or again; also for one that is not known yet, or returns."""
        (self._drained.add if drained else self._drained.discard)(backend_id)
        uplink = self._uplinks.get(backend_id)
        if uplink is not None:
            uplink.backend.set_drained(drained)

    def is_connected(self, services: Collection[str]) -> bool:
        """Whether these services have been looked up, and each backend found has a session."""
        without = (values.Health.CONNECTING, values.Health.LOST)
        return self._listed.issuperset(services) and not any(
            uplink.backend.health in without for uplink in self._uplinks.values()
        )

    def terms(self, model: str) -> values.Terms:
        """What the policy in force says about a model."""
        policy = self._policy()
        if policy is not self._terms_of or len(self._terms) > _REMEMBERED_MODELS:
            self._terms_of = policy
            self._terms = {}
        found = self._terms.get(model)
        if found is None:
            found = self._terms[model] = terms_of(policy, model)
        return found

    def choose(self, request: values.Request) -> values.Verdict:
        """Decides a request against the backends as they are now."""
        terms = self.terms(request.model)
        return choose(request, self._snapshot(), terms, self._clock(), self._random)

    def decide(self, request: values.Request) -> values.Decision:
        """The same, with all that was weighed."""
        terms = self.terms(request.model)
        return decide(request, self._snapshot(), terms, self._clock(), self._random)

    def open_to(self, request: values.Request) -> list[Uplink]:
        """Backends for a small question about the model, best first, whatever their load."""
        terms = self.terms(request.model)
        found = open_backends(request, self._snapshot(), terms, self._clock())
        return [self._uplinks[backend.id] for backend in found]

    def _snapshot(self) -> values.Pool:
        return values.Pool(
            tuple([uplink.backend.tracker.view() for uplink in self._uplinks.values()])
        )

    def wait(self, waiter: Waiter) -> bool:
        """Puts a request at the end of the line; false when the line is full."""
        if len(self._waiting) >= self.max_waiting:
            return False
        self._waiting[waiter] = None
        return True

    def leave_line(self, waiter: Waiter) -> None:
        """Takes a request out of the line."""
        self._waiting.pop(waiter, None)

    def changed(self) -> None:
        """A backend changed: whoever waits decides again, in order of arrival."""
        if self._serving_line or not self._waiting:
            return
        self._serving_line = True
        try:
            in_vain: set[Hashable] = set()
            for waiter in tuple(self._waiting):
                if waiter not in self._waiting or waiter.claim in in_vain:
                    continue
                claim = waiter.claim
                if waiter.retry_now():
                    self._waiting.pop(waiter, None)
                else:
                    in_vain.add(claim)
        finally:
            self._serving_line = False

    async def follow(self, registry: Registry, service: str) -> None:
        """Keeps the backends of one service in step with the registry until cancelled."""
        known: dict[str, Instance] = {}
        watch: AsyncIterator[tuple[Instance, ...]] = registry.watch(service)
        async for instances in watch:
            listed = {instance.id: instance for instance in instances}
            for gone in known.keys() - listed.keys():
                self._unlist(gone)
            for instance in listed.values():
                self._list(instance)
            known = listed
            self._listed.add(service)
            self.changed()

    def _list(self, instance: Instance) -> None:
        present = self._uplinks.get(instance.id)
        if present is not None and present.backend.instance.address == instance.address:
            if present.relist():
                return
        elif present is not None:
            self._unlist(instance.id)
        uplink = Uplink(instance, self._tokens, self.changed, self._clock, self._random)
        uplink.backend.set_drained(instance.id in self._drained)
        task = self._tasks.create_task(uplink.run(), name=f"uplink-{instance.id}")
        self._uplinks[instance.id] = uplink
        self._running[instance.id] = task
        task.add_done_callback(lambda done: self._forget(instance.id, done))

    def _unlist(self, backend_id: str) -> None:
        uplink = self._uplinks.get(backend_id)
        if uplink is None:
            return
        uplink.unlist()
        if uplink.backend.health in (values.Health.CONNECTING, values.Health.LOST):
            # Forgotten at once: should it be listed again, that is another uplink.
            del self._uplinks[backend_id]
            self._running.pop(backend_id).cancel()

    def _forget(self, backend_id: str, task: asyncio.Task[None]) -> None:
        if self._running.get(backend_id) is task:
            del self._running[backend_id]
            del self._uplinks[backend_id]
            self.changed()
