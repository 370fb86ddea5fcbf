"""One change at a time, each whole: what has begun goes on to its end, whoever leaves meanwhile.

What a change does is model_changes.py's and adapter_changes.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from services.chassis.tasks import Tasks

_T = TypeVar("_T")

RETRY_AFTER_S = 5.0


class ChangeTurn:
    """The turn of one process. A change whose caller has left keeps it until it is over."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._changing = ""
        self._asked = False
        self._going_on: set[asyncio.Task[Any]] = set()

    @contextmanager
    def take(self, what: str) -> Iterator[None]:
        """Raises Fault IN_USE while somebody else has it."""
        if self._changing:
            raise Fault(
                errors_pb2.ERROR_REASON_IN_USE,
                f"one change at a time: {self._changing}",
                retry_after=RETRY_AFTER_S,
            )
        self._changing, self._asked = what, True
        try:
            yield
        finally:
            self._asked = False
            self._let_go()

    def begin(self, work: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        """Work of the change that has the turn. What escapes it stops the process."""
        try:
            task = self._tasks.create_task(work, name=name)
        except RuntimeError:
            work.close()  # the process is ending, and closes what is open by itself
            raise
        self._going_on.add(task)
        task.add_done_callback(self._ended)
        return task

    async def whole(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Work that is not to be left half done; raises what it raises."""
        value, error = await asyncio.shield(self.begin(_settled(work), "model-change"))
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._going_on.discard(task)
        self._let_go()

    def _let_go(self) -> None:
        if not self._asked and not self._going_on:
            self._changing = ""


async def _settled(work: Coroutine[Any, Any, _T]) -> tuple[_T | None, Exception | None]:
    try:
        return await work, None
    except Exception as error:  # noqa: BLE001 - raised again by whoever waits for it
        return None, error
