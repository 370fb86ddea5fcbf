"""When the registry last answered about each watched service; whoever watches says so.

It decides nothing: what to do with an old answer is last_known.py's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from opentelemetry.metrics import CallbackOptions, Meter, Observation


class _Watched:
    """One service: when the last answer came, whether the last attempt brought one."""

    __slots__ = ("at", "standing", "up")

    def __init__(self, now: float) -> None:
        self.at = now
        self.up = False
        self.standing = False


class Freshness:
    """What a process knows of its registry's answers. Read from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._services: dict[str, _Watched] = {}

    def asked(self, service: str) -> None:
        """A watch begins; there is no answer yet."""
        self._of(service)

    def answered(self, service: str) -> None:
        """The registry has said who is there, or that nothing has changed."""
        watched = self._of(service)
        watched.at, watched.up = self._clock(), True

    def failed(self, service: str) -> None:
        """It did not answer."""
        self._of(service).up = False

    def stands(self, service: str) -> None:
        """What it said holds until it says something else: a list, or a catalogue in memory."""
        watched = self._of(service)
        watched.up = watched.standing = True

    def up(self) -> dict[str, bool]:
        """Whether the last attempt brought an answer, by service."""
        return {name: watched.up for name, watched in tuple(self._services.items())}

    def ages(self) -> dict[str, float]:
        """Seconds since the last answer, or since the first question, by service."""
        now = self._clock()
        return {
            name: 0.0 if watched.standing else max(0.0, now - watched.at)
            for name, watched in tuple(self._services.items())
        }

    def observe(self, meter: Meter) -> None:
        """Creates the gauges, which have a series for each watched service."""

        def up(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(int(is_up), {"service": name}) for name, is_up in self.up().items()]

        def age(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(old, {"service": name}) for name, old in self.ages().items()]

        meter.create_observable_gauge(
            "anabranch.registry.up",
            callbacks=[up],
            description="Whether the registry answered when it was last asked about a service",
        )
        meter.create_observable_gauge(
            "anabranch.registry.age",
            unit="s",
            callbacks=[age],
            description="Since the registry last answered about a service",
        )

    def _of(self, service: str) -> _Watched:
        found = self._services.get(service)
        if found is None:
            found = self._services[service] = _Watched(self._clock())
        return found
