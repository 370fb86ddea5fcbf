"""ModelAdminService: what operators ask of an engine about its models.

Translates between the wire and model_changes.py; it decides and remembers nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import TypeAlias

import grpc
from google.protobuf.duration_pb2 import Duration

from anabranch.v1 import model_admin_pb2 as pb
from anabranch.v1 import model_admin_pb2_grpc
from services.chassis.errors import Violation, invalid
from services.local_engine.change_steps import Phase, Progress, require
from services.local_engine.model_changes import ModelChanges
from services.local_engine.roster import Roster, Served, State

FULL_NAME = "anabranch.v1.ModelAdminService"
DRAIN_S, LONGEST_DRAIN_S = 60.0, 3600.0

Context: TypeAlias = grpc.aio.ServicerContext
_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_STATES = {
    State.SERVING: pb.SERVED_STATE_SERVING,
    State.DRAINING: pb.SERVED_STATE_DRAINING,
    State.ASLEEP: pb.SERVED_STATE_ASLEEP,
}
_PHASES = {
    Phase.CHECKING: pb.LoadModelResponse.PHASE_CHECKING,
    Phase.LOADING: pb.LoadModelResponse.PHASE_LOADING,
    Phase.SERVING: pb.LoadModelResponse.PHASE_SERVING,
    Phase.DRAINING: pb.LoadModelResponse.PHASE_DRAINING,
    Phase.DONE: pb.LoadModelResponse.PHASE_DONE,
}


class ModelAdmin(model_admin_pb2_grpc.ModelAdminServiceServicer):
    """The RPCs of one process."""

    def __init__(
        self,
        roster: Roster,
        changes: ModelChanges,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roster = roster
        self._changes = changes
        self._clock = clock

    async def ListServedModels(
        self, request: pb.ListServedModelsRequest, context: Context
    ) -> pb.ListServedModelsResponse:
        """What is served."""
        self._roster.models()  # or it is still loading
        return pb.ListServedModelsResponse(models=map(_served, self._roster.entries))

    async def LoadModel(
        self, request: pb.LoadModelRequest, context: Context
    ) -> AsyncIterator[pb.LoadModelResponse]:
        """Loads one, or swaps."""
        started = self._clock()
        drain = _drain(request.drain_timeout, request.HasField("drain_timeout"))
        async with aclosing(self._changes.load(request, drain)) as steps:  # type: ignore[type-var]
            async for step in steps:
                yield _progress(step, self._clock() - started)

    async def UnloadModel(
        self, request: pb.UnloadModelRequest, context: Context
    ) -> pb.UnloadModelResponse:
        """Takes one out of service."""
        require(name=request.name)
        drain = _drain(request.drain_timeout, request.HasField("drain_timeout"))
        cut = await self._changes.unload(request.name, drain, allow_last=request.allow_last)
        return pb.UnloadModelResponse(cut_off=cut)

    async def LoadAdapter(
        self, request: pb.LoadAdapterRequest, context: Context
    ) -> pb.LoadAdapterResponse:
        """Loads an adapter."""
        require(base=request.base, source=request.source)
        if not _ADAPTER_NAME.fullmatch(request.name):
            raise invalid([Violation("name", "must be 1 to 100 letters, digits and . _ -")])
        drain = _drain(request.drain_timeout, request.HasField("drain_timeout"))
        load = self._changes.adapters.load
        served = await load(request.base, request.name, request.source, drain)
        return pb.LoadAdapterResponse(model=_served(served))

    async def UnloadAdapter(
        self, request: pb.UnloadAdapterRequest, context: Context
    ) -> pb.UnloadAdapterResponse:
        """Takes an adapter out of service."""
        require(base=request.base, name=request.name)
        drain = _drain(request.drain_timeout, request.HasField("drain_timeout"))
        cut = await self._changes.adapters.unload(request.base, request.name, drain)
        return pb.UnloadAdapterResponse(cut_off=cut)

    async def Sleep(self, request: pb.SleepRequest, context: Context) -> pb.SleepResponse:
        """Puts one to sleep."""
        require(name=request.name)
        if request.level > 2:
            raise invalid([Violation("level", "must be 1 or 2")])
        drain = _drain(request.drain_timeout, request.HasField("drain_timeout"))
        served, cut = await self._changes.sleep(request.name, request.level or 1, drain)
        return pb.SleepResponse(model=_served(served), cut_off=cut)

    async def Wake(self, request: pb.WakeRequest, context: Context) -> pb.WakeResponse:
        """Brings one back."""
        require(name=request.name)
        return pb.WakeResponse(model=_served(await self._changes.wake(request.name)))


def _drain(given: Duration, said: bool) -> float:
    """In seconds. Raises Fault INVALID_REQUEST."""
    if not said:
        return DRAIN_S
    seconds = given.ToNanoseconds() / 1e9
    if not 0 <= seconds <= LONGEST_DRAIN_S:
        raise invalid([Violation("drain_timeout", "must be 0 to 3600 seconds")])
    return seconds


def _served(one: Served) -> pb.ServedModel:
    return pb.ServedModel(
        model=one.info,
        state=_STATES[one.state],
        base=one.base,
        in_flight=one.in_flight,
        sleep_level=one.sleep_level,
        loaded_at_run_time=one.at_run_time,
    )


def _progress(step: Progress, elapsed: float) -> pb.LoadModelResponse:
    message = pb.LoadModelResponse(
        phase=_PHASES[step.phase],
        detail=step.detail,
        in_flight=step.in_flight,
        cut_off=step.cut_off,
    )
    message.elapsed.FromNanoseconds(int(elapsed * 1e9))
    if step.served is not None:
        message.model.CopyFrom(_served(step.served))
    return message
