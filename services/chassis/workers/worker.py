"""A worker's side of its supervisor: what it is told, what it tells, and who its siblings are.

It serves nothing itself; Host does, with the listeners that a worker needs (listeners.py).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Any

from services.chassis import logs
from services.chassis.registry import Registration
from services.chassis.workers import control
from services.chassis.workers.assignment import Assignment
from services.chassis.workers.siblings import Roster, farewell

_log = logging.getLogger(__name__)

LOG_LEVEL = "log_level"
"""The shared key that the chassis itself obeys."""

SharedHandler = Callable[[str, Any], None]


class Worker:
    """This process as one of several. Made by `join`.

    `siblings` reaches the others, by index. `retiring` is true once it is told to end while the
    others go on.
    """

    def __init__(self, assignment: Assignment, line: control.Line) -> None:
        self.assignment = assignment
        self.index = assignment.index
        self.number = assignment.number
        self.siblings = Roster(assignment.number, assignment.directory)
        self.retiring = False
        self._line = line
        self._shared: dict[str, Any] = {}
        self._revisions: dict[str, int] = {}
        self._handlers: list[SharedHandler] = []
        self._told_state = asyncio.Event()
        self._orphaned = False
        self._farewells: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def join(
        cls, assignment: Assignment, stop: Callable[[str], None]
    ) -> AsyncIterator[Worker]:
        """Joins them; `stop(cause)` is called when the supervisor wants an end, or ends."""
        line = await control.Line.open(socket.socket(fileno=assignment.control))
        worker = cls(assignment, line)
        listening = asyncio.create_task(worker._listen(stop), name="supervisor")
        try:
            yield worker
        finally:
            listening.cancel()
            await asyncio.wait((listening, *worker._farewells))
            line.close()
            await worker.siblings.close()
            if worker._orphaned:
                assignment.remove_sockets()

    async def reachable(self) -> None:
        """Tells that the private listeners answer, and learns what is shared."""
        self._line.send(control.REACHABLE)
        await self._told_state.wait()

    def serving(self, registration: Registration) -> None:
        """Tells that it answers on the shared port; the supervisor registers the service once."""
        plain = {f.name: getattr(registration, f.name) for f in fields(registration)}
        plain["meta"] = dict(registration.meta)
        self._line.send(control.SERVING, registration=plain)

    def failed(self, cause: str) -> None:
        """Tells why it is about to end without ever serving."""
        self._line.send(control.FAILED, cause=cause)

    def share(self, key: str, value: Any, *, after: int | None = None) -> None:
        """Makes `key` `value` (JSON) for every worker, those started later included; None removes
        it. The last writer wins everywhere, except that with `after` nothing happens unless the
        key's revision still is that one: of several such writers, the first wins."""
        self._line.send(control.SHARE, key=key, value=value, after=after)

    def revision(self, key: str) -> int:
        """How often `key` was shared, as far as this worker has heard; a handler of `on_shared`
        finds it as of the value that it is called with."""
        return self._revisions.get(key, 0)

    def on_shared(self, handler: SharedHandler) -> None:
        """Calls `handler` for everything shared so far, and for each change from now on."""
        self._handlers.append(handler)
        for key, value in self._shared.items():
            handler(key, value)

    async def _listen(self, stop: Callable[[str], None]) -> None:
        async for message in self._line.messages():
            match message["kind"]:
                case control.STATE:
                    self._revisions = message["revisions"]
                    for key, value in message["shared"].items():
                        self._note(key, value)
                    self._told_state.set()
                case control.SHARED:
                    self._revisions[message["key"]] = message["revision"]
                    self._note(message["key"], message["value"])
                case control.ROSTER:
                    gone = self.siblings.update(tuple(entry) for entry in message["workers"])
                    for channel in gone:
                        task = asyncio.create_task(farewell(channel), name="farewell")
                        self._farewells.add(task)
                        task.add_done_callback(self._farewells.discard)
                case control.RETIRE:
                    self.retiring = True
                    stop("another worker takes over")
                case control.STOP:
                    self.retiring = False
                    stop("the service stops")
        _log.warning("the supervisor is gone")
        self.retiring = False
        self._orphaned = True
        stop("the supervisor is gone")

    def _note(self, key: str, value: Any) -> None:
        if value is None:
            self._shared.pop(key, None)
        else:
            self._shared[key] = value
        if key == LOG_LEVEL and value is not None:
            logs.set_level(value)
        for handler in self._handlers:
            handler(key, value)
