"""What the world sees of the backends that a router knows: how many, how they are, how busy.

Read at each scrape, in another thread than the loop's: nothing here changes a backend. A backend
has its series for as long as it is known.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from services.router.core.breaker import BreakerState
from services.router.core.values import Health, Tier
from services.router.known_backend import KnownBackend

Read = Callable[[KnownBackend], int | float]


def observe_backends(
    meter: Meter, known: Callable[[], Iterable[KnownBackend]], clock: Callable[[], float]
) -> None:
    """Creates the gauges over the backends that `known` gives; `clock` is their breakers'."""

    def states(_: CallbackOptions) -> Iterable[Observation]:
        counts = Counter((backend.tier, state_of(backend)) for backend in known())
        for tier in Tier:
            for state in Health:
                labels = {"anabranch.tier": tier.value, "state": state.value}
                yield Observation(counts[tier, state], labels)

    def each(read: Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def callback(_: CallbackOptions) -> Iterable[Observation]:
            for backend in known():
                labels = {"backend": backend.id, "anabranch.tier": backend.tier.value}
                yield Observation(read(backend), labels)

        return callback

    def is_ready(backend: KnownBackend) -> int:
        return int(state_of(backend) is Health.READY)

    def is_open(backend: KnownBackend) -> int:
        return int(backend.breaker.state(clock()) is BreakerState.OPEN)

    meter.create_observable_gauge(
        "anabranch.router.backends",
        callbacks=[states],
        description="Known backends by tier and state",
    )
    reads: tuple[tuple[str, str, Read], ...] = (
        ("ready", "Whether it takes new work", is_ready),
        ("in_flight", "Requests of this router there", lambda backend: backend.in_flight),
        ("breaker_open", "Whether it is left alone after failures", is_open),
        ("waiting", "Requests that wait there, as it says itself", _waiting),
        ("kv_used_ratio", "Share of its KV cache in use, as it says itself", _kv_used),
        ("step_time_ratio", "Its steps' time over what it should be, as it says", _step_ratio),
    )
    for name, description, read in reads:
        meter.create_observable_gauge(
            f"anabranch.router.backend_{name}", callbacks=[each(read)], description=description
        )


def state_of(backend: KnownBackend) -> Health:
    """Its health as an operator sees it: one that is drained by hand drains."""
    if backend.drained and backend.health is Health.READY:
        return Health.DRAINING
    return backend.health


def _waiting(backend: KnownBackend) -> int:
    report = backend.report
    return 0 if report is None else report.waiting


def _kv_used(backend: KnownBackend) -> float:
    report = backend.report
    if report is None or report.kv_total_tokens <= 0:
        return 0.0
    return report.kv_used_tokens / report.kv_total_tokens


def _step_ratio(backend: KnownBackend) -> float:
    report = backend.report
    ratio = 0.0 if report is None else report.step_time_ratio
    return ratio if math.isfinite(ratio) and ratio > 0 else 1.0
