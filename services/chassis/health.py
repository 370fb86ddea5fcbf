"""What a process answers when it is asked how it is: three questions, told apart.

Startup: is the start complete? Readiness: may new work come? Liveness: does it work at all, or must
it be restarted? Over gRPC they are names of grpc.health.v1, over HTTP they are paths
(http_endpoint.py). What is wrong is said by whoever knows; nothing is looked at here.

All answers come from the event loop that does the work. Where that loop is stuck no answer comes
in time, and every probe takes that for a no: nothing here has to find it out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from enum import StrEnum

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

_STARTING = "it is starting"


class Question(StrEnum):
    """What a probe asks; the value is its name in grpc.health.v1."""

    STARTUP = "startup"
    READINESS = "readiness"
    LIVENESS = "liveness"


class Health:
    """The state behind the answers, and the only one there is: gRPC and HTTP read it alike.

    A start completes once and stays complete. Readiness ends for good with `leaves`, and for a
    while with a trouble. Only a trouble that a restart cures touches liveness.
    """

    def __init__(self) -> None:
        self._started = False
        self._leaving = ""
        self._troubles: dict[str, tuple[str, bool]] = {}
        self._changed = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether new work may come."""
        return not self.problem(Question.READINESS)

    @property
    def is_leaving(self) -> bool:
        """Whether it takes no new work any more, for good."""
        return bool(self._leaving)

    def started(self) -> None:
        """The start is complete: what the process is for can be done."""
        self._started = True
        self._announce()

    def leaves(self, why: str) -> None:
        """Nothing new any more; what runs goes on. It is alive until its end."""
        self._leaving = self._leaving or why
        self._announce()

    def trouble(self, concern: str, why: str, *, restart: bool) -> None:
        """What `concern` names does not work; `restart`: a new process would cure that.

        Holds until `well`. `why` is shown to anybody who asks: no secrets, no prompts.
        """
        if self._troubles.get(concern) != (why, restart):
            self._troubles[concern] = (why, restart)
            self._announce()

    def well(self, concern: str) -> None:
        """It works again. Without effect when there was no trouble."""
        if self._troubles.pop(concern, None) is not None:
            self._announce()

    def problem(self, question: Question) -> str:
        """Why the answer is no, in a few words; empty for a yes."""
        if question is Question.LIVENESS:
            return _first(why for why, restart in self._troubles.values() if restart)
        if not self._started:
            return _STARTING
        if question is Question.STARTUP:
            return ""
        return self._leaving or _first(why for why, _ in self._troubles.values())

    async def ask(self, question: Question) -> str:
        """As `problem`, for whoever must ask somebody else in other processes."""
        return self.problem(question)

    async def changed(self) -> None:
        """Waits until an answer may be another one."""
        await self._changed.wait()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1 over a `Health`. The server and each served service answer as `readiness`.

    Not the servicer of grpcio-health-checking: that one changes a status only once every watcher
    has taken the last one, so a watcher that reads nothing keeps a process from saying that it
    leaves. Anybody may watch.
    """

    def __init__(self, health: Health, services: Iterable[str] = ()) -> None:
        self._health = health
        self._questions = dict.fromkeys(("", *services), Question.READINESS)
        self._questions |= {question.value: question for question in Question}

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """The answer now; NOT_FOUND for a name that is none."""
        status = self._status(request.service)
        if status == _UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service here")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The answer now and each other one; SERVICE_UNKNOWN for a name that is none."""
        told: int | None = None
        while True:
            status = self._status(request.service)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            else:
                await self._health.changed()

    def _status(self, name: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        question = self._questions.get(name)
        if question is None:
            return _UNKNOWN
        return _NOT_SERVING if self._health.problem(question) else _SERVING


def _first(reasons: Iterable[str]) -> str:
    return next(iter(reasons), "")
