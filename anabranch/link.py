"""The requests of one client over whichever session is alive.

Opens sessions, replaces one that goes away, and moves to the next one the requests that
have received nothing. Never repeats a request after its first output.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import grpc

from anabranch.backoff import reconnect_delay
from anabranch.errors import AnabranchError, Work, error_for
from anabranch.inflight import Inflight
from anabranch.session import Session, SessionSettings

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 6
"""Sessions that a request without output is given to before it fails."""
PATIENCE = 5.0
"""Seconds after it first lost its session in which a request is given to another."""
FAREWELL = 1.0
"""Seconds that a service which would keep a session has to hear that it is over."""

# Ends of a session that another session may not meet.
_PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)

# Why an answer broke off, where that is more than that its service was lost.
_OWN_REASONS = ("SLOW_READER", "CANCELLED", "SESSION_LOST")


class Link:
    """Starts requests and keeps a session for them. Belongs to one event loop."""

    def __init__(
        self, settings: SessionSettings, *, rng: Callable[[], float] = random.random
    ) -> None:
        self._settings = settings
        self._rng = rng
        self._current: Session | None = None
        self._running: dict[Session, asyncio.Task[None]] = {}
        self._failures = 0
        self._hold = 0.0
        self._opened = False
        self._closed = False

    def start(self, inflight: Inflight) -> None:
        """Puts a request on its way. Raises RequestCancelledError after close."""
        if self._closed:
            raise _closed()
        self._session().add(inflight)

    async def close(self) -> None:
        """Ends every session at once, which cancels what still runs on them."""
        self._closed = True
        told = [task for session, task in list(self._running.items()) if session.close()]
        try:
            if told:
                await asyncio.wait(told, timeout=FAREWELL)
        finally:
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def on_ready(self, session: Session) -> None:
        """Forgets earlier failures."""
        self._failures = 0

    def on_retire(self, session: Session) -> None:
        """Gives new requests to another session."""
        if self._current is session:
            self._current = None

    def on_refused(self, session: Session, inflight: Inflight, error: AnabranchError) -> None:
        """Passes the error on, unless only this session or its credential was refused."""
        again = not inflight.heard and error.work is Work.NOT_DISPATCHED
        if again and error.reason == "DRAINING":
            again = inflight.attempts < MAX_ATTEMPTS
        elif again and error.reason == "CREDENTIAL_REJECTED":
            again = self._fresh_token_for(inflight, session)
        else:
            again = False
        if not again or self._closed:
            inflight.fail(error)
            return
        session.retire()
        self._session().add(inflight)

    def on_end(self, session: Session, orphans: list[Inflight], error: AnabranchError) -> None:
        """Repeats the requests that received nothing, where that can help."""
        del self._running[session]
        self.on_retire(session)
        if session.ready is None and not session.login_failed:
            self._failures += 1
        self._hold = min(error.retry_after or 0.0, PATIENCE)
        if orphans:
            logger.info("session to %s ended: %s", self._settings.target, error.message)
        for inflight in orphans:
            if inflight.over:
                continue
            if inflight.heard:
                inflight.fail(_broken_off(inflight, error))
            elif not self._closed and self._may_repeat(session, inflight, error):
                self._session().add(inflight)
            else:
                inflight.fail(_never_answered(inflight, error))

    def _may_repeat(self, session: Session, inflight: Inflight, error: AnabranchError) -> bool:
        if session.login_failed:
            return False
        if error.reason == "CREDENTIAL_REJECTED":
            return self._fresh_token_for(inflight, session)
        now = asyncio.get_running_loop().time()
        inflight.lost_at = inflight.lost_at or now
        patient = now - inflight.lost_at < PATIENCE and inflight.attempts < MAX_ATTEMPTS
        return error.code in _PASSING and patient

    def _fresh_token_for(self, inflight: Inflight, session: Session) -> bool:
        """Whether a newer credential can be had for a request that was refused once at most."""
        if inflight.reauthorized:
            return False
        inflight.reauthorized = True
        return self._settings.tokens.reject(session.authorization)

    def _session(self) -> Session:
        if self._current is None:
            delay = reconnect_delay(self._failures, self._rng) if self._opened else 0.0
            delay, self._hold = max(delay, self._hold), 0.0
            self._opened = True
            self._current = session = Session(self._settings, self, delay=delay, rng=self._rng)
            self._running[session] = asyncio.create_task(session.run(), name="anabranch-session")
        return self._current


def _closed() -> AnabranchError:
    return error_for(
        "CANCELLED",
        "the client is closed",
        grpc.StatusCode.CANCELLED,
        work=Work.NOT_DISPATCHED,
    )


def _broken_off(inflight: Inflight, error: AnabranchError) -> AnabranchError:
    """The error of a request whose answer had begun."""
    reason = error.reason if error.reason in _OWN_REASONS else "BACKEND_LOST"
    return error_for(
        reason,
        f"the answer broke off after {inflight.tokens} tokens: {error.message}",
        error.code,
        work=Work.OUTPUT_SEEN,
        metadata={"tokens_delivered": str(inflight.tokens)},
    )


def _never_answered(inflight: Inflight, error: AnabranchError) -> AnabranchError:
    """The error of a request that received nothing: an own one, as each is raised once."""
    return error_for(
        error.reason,
        error.message,
        error.code,
        work=Work.MAYBE_BILLED if inflight.dispatched else Work.NOT_DISPATCHED,
        metadata=error.metadata,
        violations=error.violations,
        quota=error.quota,
        retry_after=error.retry_after,
    )
