"""What the world sees of sessions that lose their connections: how many wait, return, are lost."""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from services.chassis.detached_sessions import ResumableSessions


def observe_sessions(meter: Meter, sessions: ResumableSessions) -> None:
    """Creates the instruments; they read the sessions at each scrape."""

    def lost(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(count, {"reason": reason}) for reason, count in sessions.lost.items()]

    meter.create_observable_gauge(
        "anabranch.router.sessions.detached",
        callbacks=[lambda _: [Observation(sessions.detached)]],
        description="Sessions that wait for their callers to reconnect",
    )
    meter.create_observable_gauge(
        "anabranch.router.sessions.detached_bytes",
        unit="By",
        callbacks=[lambda _: [Observation(sessions.detached_bytes)]],
        description="Output held for these",
    )
    meter.create_observable_counter(
        "anabranch.router.sessions.resumed",
        callbacks=[lambda _: [Observation(sessions.resumed)]],
        description="Sessions that went on over another connection",
    )
    meter.create_observable_counter(
        "anabranch.router.sessions.handed_over",
        callbacks=[lambda _: [Observation(sessions.handed_over)]],
        description="Callers who came back to another worker than the one with their session",
    )
    meter.create_observable_counter(
        "anabranch.router.sessions.lost",
        callbacks=[lost],
        description="Sessions that ended without a connection, and attempts to resume unknown ones",
    )
