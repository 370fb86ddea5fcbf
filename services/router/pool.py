"""The backends that the router knows, kept in step with the registry.

Owns the sessions to them, and looks once a second for one that has fallen silent. What is decided
from it is in decisions.py, who waits for it in waiting_line.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection

from services.chassis.auth_client import TokenSource
from services.chassis.registry import Instance, Registry
from services.chassis.tasks import Tasks
from services.chassis.tls import Tls
from services.router.core import values
from services.router.core.policy import Affinity, BreakerRules
from services.router.core.prefix import PrefixIndex
from services.router.known_backend import KnownBackend
from services.router.uplink import Uplink

ROUTER_SERVICE = "anabranch-router"
BACKEND_SERVICES = ("anabranch-engine", "anabranch-cloud")
WORKERS = "workers"
"""What a router says in the registry: how many processes it has."""
_LOOK_FOR_SILENCE_S = 1.0


class Pool:
    """Backends by id. `on_change` is called whenever one of them may take more than before."""

    def __init__(
        self,
        tokens: TokenSource,
        tasks: Tasks,
        clock: Callable[[], float],
        *,
        seed: int | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._tokens = tokens
        self._tasks = tasks
        self._clock = clock
        self._tls = tls
        # Spreads reconnects; nothing secret hangs on it.
        self._random = random.Random(seed)  # noqa: S311
        self._uplinks: dict[str, Uplink] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._drained: set[str] = set()
        self._listed: set[str] = set()
        self._weights: dict[str, str] = {}
        self._breaker = BreakerRules()
        self._affinity = Affinity()
        self._peers = 1
        self.prefixes = PrefixIndex()
        self.on_change: Callable[[], None] = _nobody_waits

    def __len__(self) -> int:
        return len(self._uplinks)

    @property
    def affinity(self) -> bool:
        """Whether prompts go where their beginnings are cached."""
        return self._affinity.enabled

    @property
    def peers(self) -> int:
        """Router processes that are known, this one included."""
        return self._peers

    def set_rules(self, breaker: BreakerRules, affinity: Affinity) -> None:
        """Other rules from now on."""
        self._breaker = breaker
        self._affinity = affinity
        self.prefixes.capacity = affinity.blocks_per_backend
        for uplink in self._uplinks.values():
            uplink.backend.breaker.set_rules(breaker)

    def snapshot(self, turn: int) -> values.Pool:
        """Every backend as a value; `turn` counts the decisions."""
        views = tuple([uplink.backend.tracker.view() for uplink in self._uplinks.values()])
        return values.Pool(views, self.prefixes if self._affinity.enabled else None, turn)

    def uplinks(self) -> list[Uplink]:
        """Every known backend, ordered by id."""
        return [self._uplinks[key] for key in sorted(self._uplinks)]

    def known(self) -> list[KnownBackend]:
        """Every known backend. From any thread: the dict is copied in one go."""
        return [uplink.backend for uplink in list(self._uplinks.values())]

    def serves(self, model: str) -> bool:
        """Whether a known backend says that it has a model of this name."""
        return any(model in uplink.backend.model_names for uplink in self._uplinks.values())

    def weights(self, model: str) -> str:
        """What local backends serve under this name, or did when there last was one; "" unknown."""
        found = {
            uplink.backend.models[model].served_model
            for uplink in self._uplinks.values()
            if uplink.backend.tier is values.Tier.LOCAL and model in uplink.backend.models
        }
        if found:
            # Only of names that somebody serves, so there are few.
            self._weights[model] = ",".join(sorted(found))
        return self._weights.get(model, "")

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

    async def count_peers(self, registry: Registry, own: int) -> None:
        """Keeps count of the router processes that send to the same backends, until cancelled.

        `own` is how many this router has; the others say so in the registry. Where it tells no
        such thing they are taken to be of this one's kind.
        """
        async for instances in registry.watch(ROUTER_SERVICE):
            self._peers = max(sum(_processes(router, own) for router in instances), own)
            for uplink in self._uplinks.values():
                uplink.backend.tracker.set_peers(self._peers)

    async def look_for_silence(self) -> None:
        """Gives up backends that have work and bring no token, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_FOR_SILENCE_S)
            for uplink in tuple(self._uplinks.values()):
                uplink.end_if_silent()

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
            self.on_change()

    def _list(self, instance: Instance) -> None:
        present = self._uplinks.get(instance.id)
        if present is not None and present.backend.instance.address == instance.address:
            if present.relist():
                present.backend.set_weight(instance.weight)
                return
        elif present is not None:
            self._unlist(instance.id)
        uplink = Uplink(
            instance,
            self._tokens,
            self._changed,
            self._clock,
            self._random,
            self.prefixes,
            self._tls,
        )
        uplink.backend.breaker.set_rules(self._breaker)
        uplink.backend.tracker.set_peers(self._peers)
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
            self.prefixes.forget(backend_id)
            self.on_change()

    def _changed(self) -> None:
        self.on_change()


def _processes(router: Instance, own: int) -> int:
    said = router.meta.get(WORKERS, str(own))
    return int(said) if said.isdecimal() else 1


def _nobody_waits() -> None:
    """Until a line is there."""
