"""One load of a model: in a thread, with the processes that it starts, and why it failed.

vLLM computes in processes of its own. One that dies while it starts tells its reason to nobody but
its standard error, and what the caller gets is "Engine core initialization failed". So standard
error goes through a pipe while processes are started: all of it is passed on, and its end is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from services.chassis.own_thread import in_own_thread

T = TypeVar("T")

_KEPT_LINES = 400
_LOOK_S = 0.05
_LONGEST_CAUSE = 300
# "(EngineCore pid=7) ValueError: No available memory …": the last line of a traceback.
_RAISED = re.compile(
    r"^(?:\([^)]*\)\s*)?(?:[\w.]+ \S+ \S+ \[[^\]]*\]\s*)?"
    r"(?P<kind>(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt|Unsupported)): (?P<text>.+)$"
)
_SAYS_NOTHING = ("Engine core initialization failed", "WorkerProc initialization failed")


def cause_in(lines: list[str]) -> str:
    """The reason in what processes wrote before they died; empty where they gave none."""
    for line in reversed(lines):
        match = _RAISED.match(line.strip())
        if match is not None and not match["text"].startswith(_SAYS_NOTHING):
            return match["text"].strip()[:_LONGEST_CAUSE]
    return ""


class ModelLoad(Generic[T]):
    """Runs `work`, which starts processes. One at a time in a process."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._before = {child.pid for child in multiprocessing.active_children()}
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._ended = threading.Event()
        self._begun = False

    @property
    def cause(self) -> str:
        """Why it failed, as the processes that died said; empty when they did not."""
        return cause_in(list(self._lines))

    def children(self) -> list[int]:
        """The processes that it has started and that still run."""
        running = {child.pid for child in multiprocessing.active_children() if child.pid}
        return sorted(pid for pid in running - self._before if pid is not None)

    async def result(self) -> T:
        """What the work returns, or raises."""
        self._begun = True
        return await in_own_thread(self._run, name="model-load")

    async def abandon(self) -> None:
        """Kills what it starts until it gives up, or what it has just started. May be repeated."""
        while True:
            over = not self._begun or self._ended.is_set()
            for pid in self.children():
                _kill(pid)
            if over:
                return
            await asyncio.sleep(_LOOK_S)

    def _run(self) -> T:
        try:
            with _standard_error_kept(self._lines):
                return self._work()
        finally:
            self._ended.set()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@contextmanager
def _standard_error_kept(lines: deque[str]) -> Iterator[None]:
    """Processes that are started meanwhile write through a pipe for as long as they live."""
    try:
        original = os.dup(2)
    except OSError:
        yield  # there is none: nothing is written, and nothing can be kept
        return
    reading, writing = os.pipe()
    reader = threading.Thread(
        target=_pass_on, args=(reading, original, lines), name="model-load-stderr", daemon=True
    )
    reader.start()
    os.dup2(writing, 2)
    os.close(writing)
    failed = True
    try:
        yield
        failed = False
    finally:
        os.dup2(original, 2)
        if failed:
            # Their last words are in the pipe until the last of them is gone.
            reader.join(timeout=5.0)


def _pass_on(reading: int, target: int, lines: deque[str]) -> None:
    """Copies until every writer is gone; closes both ends."""
    rest = b""
    try:
        while chunk := os.read(reading, 65536):
            # That nobody reads it must not stop whoever writes.
            with contextlib.suppress(OSError):
                os.write(target, chunk)
            *whole, rest = (rest + chunk).split(b"\n")
            rest = rest[-65536:]
            lines.extend(line.decode("utf-8", "replace") for line in whole)
    finally:
        os.close(reading)
        os.close(target)
