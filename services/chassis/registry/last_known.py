"""Which set of instances is in force, given what the registry answered and when it failed.

Pure: values and times in, values out. It asks nobody and waits for nothing.

The rules:

1. While the registry fails, the last known set stays in force, for `stale_for` seconds. Then it is
   given up and the set is empty.
2. A registry that comes back may have lost its memory (an agent in dev mode, a restored snapshot)
   and answer with an empty or partial set until every process has registered again. So for `grace`
   seconds after an outage, or after its index went backwards, instances that were known before and
   are missing now stay in force. They go when the grace ends, or at once when another instance
   is registered at their address. The price: a process that died during an outage is
   believed for `grace` seconds longer; callers' own health checks decide in that time.
3. No instance outlives its last sighting by more than `stale_for`, however often the registry
   flaps.
"""

from __future__ import annotations

from services.chassis.registry.instances import Instance


class LastKnown:
    """The set in force for one watched service. Times are monotonic seconds."""

    def __init__(self, stale_for: float, grace: float) -> None:
        self._stale_for = stale_for
        self._grace = grace
        self._shown: tuple[Instance, ...] | None = None
        self._failing_since: float | None = None
        self._grace_until: float | None = None
        self._kept: dict[str, Instance] = {}
        self._seen: dict[str, float] = {}

    def answered(
        self, fresh: tuple[Instance, ...], *, memory_lost: bool, now: float
    ) -> tuple[Instance, ...] | None:
        """Takes an answer of the registry; returns the set now in force if it changed."""
        if (self._failing_since is not None or memory_lost) and self._shown:
            self._grace_until = now + self._grace
            self._kept = {i.id: i for i in self._shown}
        self._failing_since = None
        if self._grace_until is not None and now >= self._grace_until:
            self._grace_until = None
            self._kept = {}
        ids, addresses = {i.id for i in fresh}, {i.address for i in fresh}
        kept = [
            i
            for i in self._kept.values()
            if i.id not in ids
            and i.address not in addresses
            and now - self._seen.get(i.id, now) < self._stale_for
        ]
        for id in ids:
            self._seen[id] = now
        self._seen = {id: t for id, t in self._seen.items() if id in ids or id in self._kept}
        return self._show(tuple(sorted((*fresh, *kept), key=lambda i: i.id)))

    def failed(self, now: float) -> tuple[Instance, ...] | None:
        """Takes a failure to ask; returns the empty set once the last known one is too old."""
        if self._failing_since is None:
            self._failing_since = now
        if self._shown and now - self._failing_since >= self._stale_for:
            self._kept = {}
            return self._show(())
        return None

    def seconds_of_grace(self, now: float) -> float | None:
        """Time until the grace ends, when the registry should be asked again; None outside it."""
        return None if self._grace_until is None else max(0.0, self._grace_until - now)

    def _show(self, instances: tuple[Instance, ...]) -> tuple[Instance, ...] | None:
        if instances == self._shown:
            return None
        self._shown = instances
        return instances
