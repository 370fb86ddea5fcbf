"""The resumable sessions of one process, and the ones among them that have no connection.

Names them, finds them again for the client that opened them, and ends those that wait too long,
hold too much or are too many. What a session is, is session_state.py's.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from anabranch.v1 import errors_pb2, session_pb2
from services.chassis.caller_writes import reads_too_slowly
from services.chassis.errors import Fault, Work
from services.chassis.principal import Principal
from services.chassis.session_state import SessionState

_log = logging.getLogger(__name__)

_ID_BYTES = 24
_LONGEST_ID = 80


@dataclass(frozen=True, slots=True)
class ResumeLimits:
    """`window`: seconds that a session may be without a connection, 0 for sessions that end with
    theirs. At most `most_detached` sessions are without one, and they hold at most `most_bytes`.
    """

    window: float = 0.0
    most_detached: int = 1000
    most_bytes: int = 256 * 1024 * 1024


class Elsewhere(Exception):
    """The session is held by a sibling process: the worker of this index and number."""

    def __init__(self, index: int, number: int) -> None:
        super().__init__(f"worker {index}, number {number}")
        self.index = index
        self.number = number


class _Wait:
    """A session without a connection, in whose stead this hears of its output."""

    __slots__ = ("_grew", "bytes", "fault", "state", "timer")

    def __init__(
        self,
        state: SessionState,
        timer: asyncio.TimerHandle,
        grew: Callable[[_Wait], None],
    ) -> None:
        self.state = state
        self.timer = timer
        self._grew = grew
        self.bytes = 0
        self.fault: Fault | None = None

    def set(self) -> None:
        """There is more to send: see session_output.Wake."""
        self._grew(self)


def session_lost(why: str = "") -> Fault:
    """One text for every session that is not there, so that guessing teaches nothing."""
    return Fault(
        errors_pb2.ERROR_REASON_SESSION_LOST,
        why
        or "there is no such session to resume: it waited for too long, or was never opened "
        "here; open a new one, and repeat there only requests that had no output",
        work=Work.MAYBE_BILLED,
    )


class ResumableSessions:
    """Holds every session that may be resumed. Belongs to one event loop.

    `place` is (index, number) of this process among its siblings, none for a single one.
    Counts what became of them: `resumed`, `lost` by reason, and callers `handed_over` to siblings.
    """

    def __init__(self, limits: ResumeLimits, place: tuple[int, int] | None = None) -> None:
        self._limits = limits
        self._place = place
        self._sessions: dict[bytes, SessionState] = {}
        self._keys: dict[SessionState, bytes] = {}
        self._waiting: dict[SessionState, _Wait] = {}
        self._bytes = 0
        self._shut = False
        self.resumed = 0
        self.handed_over = 0
        self.lost: Counter[str] = Counter()

    @property
    def offered(self) -> bool:
        """Whether sessions can be resumed here."""
        return self._limits.window > 0

    @property
    def detached(self) -> int:
        """Sessions without a connection."""
        return len(self._waiting)

    @property
    def detached_bytes(self) -> int:
        """What these hold for their callers."""
        return self._bytes

    @property
    def hold_answers(self) -> bool:
        """Whether a session without a connection holds something for its caller."""
        return self._bytes > 0

    def __iter__(self) -> Iterator[SessionState]:
        """Those without a connection."""
        return iter(tuple(self._waiting))

    def offer(self, ready: session_pb2.SessionReady, buffer_bytes: int) -> str:
        """Writes into `ready` that its session can be resumed; returns the session's id."""
        if not self.offered or self._shut:
            return ""
        place = "" if self._place is None else f"{self._place[0]}.{self._place[1]}."
        ready.session_id = place + secrets.token_urlsafe(_ID_BYTES)
        ready.resume_window.FromNanoseconds(round(self._limits.window * 1e9))
        ready.resume_buffer_bytes = buffer_bytes
        return ready.session_id

    def add(self, session_id: str, state: SessionState) -> None:
        """The caller wants this session to be resumable."""
        key = _key(session_id)
        self._sessions[key] = state
        self._keys[state] = key
        state.output.numbered = True

    def claim(self, session_id: str, principal: Principal) -> SessionState:
        """The session of that id, for the client that opened it.

        Raises Fault SESSION_LOST, or why it ended, and Elsewhere when a sibling has it.
        """
        place = _place_of(session_id)
        if place is not None and place != self._place and self._place is not None:
            self.handed_over += 1
            raise Elsewhere(*place)
        state = self._sessions.get(_key(session_id))
        if state is None or not _same_client(state.principal, principal):
            self.lost["unknown"] += 1
            raise session_lost()
        wait = self._waiting.get(state)
        if wait is not None:
            if wait.fault is not None:
                raise wait.fault
            self._end_wait(state)
        self.resumed += 1
        return state

    def detach(self, state: SessionState) -> None:
        """Its connection was lost: it waits for another."""
        if self._shut:
            self.remove(state)
            self.lost["shutdown"] += 1
            return
        state.carrier = None
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._limits.window, self._lose, state, "expired")
        self._waiting[state] = wait = _Wait(state, timer, self._grew)
        state.output.wake = wait
        self._grew(wait)
        if len(self._waiting) > self._limits.most_detached:
            self._evict()

    def remove(self, state: SessionState) -> None:
        """It is over. Idempotent."""
        self._end_wait(state)
        key = self._keys.pop(state, None)
        if key is not None:
            del self._sessions[key]
        state.close()

    def shut(self) -> None:
        """The process is about to end: nothing waits any more."""
        self._shut = True
        for state in tuple(self._waiting):
            self._lose(state, "shutdown")

    def _grew(self, wait: _Wait) -> None:
        state = wait.state
        held = state.output.held
        self._bytes += held - wait.bytes
        wait.bytes = held
        if state.output.overflowed and wait.fault is None:
            wait.fault = reads_too_slowly(
                "more gathered than the session's buffer holds while it had no connection"
            )
            # Not within the turn that brings output: there is more of it for this very session.
            asyncio.get_running_loop().call_soon(self._overflow, wait)
        elif self._bytes > self._limits.most_bytes:
            asyncio.get_running_loop().call_soon(self._evict_bytes)

    def _overflow(self, wait: _Wait) -> None:
        """Ends the session, but remembers why until its time is over."""
        if self._waiting.get(wait.state) is wait:
            self.lost["overflow"] += 1
            wait.state.close()

    def _evict_bytes(self) -> None:
        while self._bytes > self._limits.most_bytes:
            self._evict()

    def _evict(self) -> None:
        """Ends the longest waiting session of the client that has most of them."""
        clients = Counter(state.principal.client_id for state in self._waiting)
        (most, _), *_ = clients.most_common(1)
        first = next(s for s in self._waiting if s.principal.client_id == most)
        self._lose(first, "evicted")

    def _lose(self, state: SessionState, why: str) -> None:
        if self._waiting[state].fault is None:
            self.lost[why] += 1
            _log.info(
                "session without a connection ended",
                extra={
                    "cause": why,
                    "client_id": state.principal.client_id,
                    "running": state.running(),
                },
            )
        self.remove(state)

    def _end_wait(self, state: SessionState) -> None:
        wait = self._waiting.pop(state, None)
        if wait is not None:
            wait.timer.cancel()
            self._bytes -= wait.bytes
            state.output.wake = asyncio.Event()  # nobody hears it


def _key(session_id: str) -> bytes:
    """What a session is found by: nothing about an id can be learnt from how long that takes."""
    return hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).digest()


def _place_of(session_id: str) -> tuple[int, int] | None:
    """The worker that an id names."""
    parts = session_id.split(".")
    if len(session_id) > _LONGEST_ID or len(parts) != 3:
        return None
    index, number, _ = parts
    if not (index.isascii() and index.isdigit() and number.isascii() and number.isdigit()):
        return None
    return int(index), int(number)


def _same_client(opened: Principal, comes: Principal) -> bool:
    return (opened.client_id, opened.tenant) == (comes.client_id, comes.tenant)
