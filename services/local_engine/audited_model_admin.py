"""ModelAdminService with an audit trail: what changes something is recorded before it is done."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from google.protobuf.json_format import MessageToJson

from anabranch.v1 import model_admin_pb2 as pb
from anabranch.v1 import model_admin_pb2_grpc
from services.chassis.audit.entry import Act, Scalar
from services.chassis.audit.trail import Trail
from services.chassis.principal import current_address, current_principal
from services.local_engine.model_admin import Context, ModelAdmin

_ARGUMENT = re.compile(r'"([a-z_]{1,64})"\s*:')


class AuditedModelAdmin(model_admin_pb2_grpc.ModelAdminServiceServicer):
    """What reads only is passed on as it is."""

    def __init__(self, inner: ModelAdmin, trail: Trail) -> None:
        self._inner = inner
        self._trail = trail

    async def ListServedModels(
        self, request: pb.ListServedModelsRequest, context: Context
    ) -> pb.ListServedModelsResponse:
        """Changes nothing."""
        return await self._inner.ListServedModels(request, context)

    async def LoadModel(
        self, request: pb.LoadModelRequest, context: Context
    ) -> AsyncIterator[pb.LoadModelResponse]:
        """Recorded as "engine.load_model", with where it comes from and how it is loaded."""
        act = _act("engine.load_model", request.name, _how(request))
        async with (
            self._trail.act(act) as outcome,
            aclosing(self._inner.LoadModel(request, context)) as steps,  # type: ignore[type-var]
        ):
            async for step in steps:
                outcome["phase_reached"] = pb.LoadModelResponse.Phase.Name(step.phase)
                outcome["cut_off"] = step.cut_off
                yield step

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> Any:
        """Recorded as "engine.unload_model"."""
        details = {"allow_last": request.allow_last}
        return await self._do("engine.unload_model", request.name, request, context, details)

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Context) -> Any:
        """Recorded as "engine.load_adapter", with where it comes from."""
        target, details = f"{request.base}:{request.name}", {"source": request.source}
        return await self._do("engine.load_adapter", target, request, context, details)

    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: Context) -> Any:
        """Recorded as "engine.unload_adapter"."""
        target = f"{request.base}:{request.name}"
        return await self._do("engine.unload_adapter", target, request, context)

    async def Sleep(self, request: pb.SleepRequest, context: Context) -> Any:
        """Recorded as "engine.sleep", with the level."""
        details = {"level": request.level or 1}
        return await self._do("engine.sleep", request.name, request, context, details)

    async def Wake(self, request: pb.WakeRequest, context: Context) -> Any:
        """Recorded as "engine.wake"."""
        return await self._do("engine.wake", request.name, request, context)

    async def _do(
        self,
        action: str,
        target: str,
        request: Any,
        context: Context,
        details: Mapping[str, Scalar] | None = None,
    ) -> Any:
        method = getattr(self._inner, type(request).__name__.removesuffix("Request"))
        async with self._trail.act(_act(action, target, details or {})) as outcome:
            response = await method(request, context)
            if hasattr(response, "cut_off"):
                outcome["cut_off"] = response.cut_off
        return response


def _how(request: pb.LoadModelRequest) -> dict[str, Scalar]:
    """What a load is asked for. Of arguments of vLLM only the names, since nobody has looked at
    the values yet."""
    options = pb.LoadOptions()
    options.CopyFrom(request.options)
    options.vllm_args = ""
    return {
        "source": request.source,
        "aliases": ",".join(request.aliases),
        "options": MessageToJson(options, indent=None, preserving_proto_field_name=True),
        "vllm_args": ",".join(_ARGUMENT.findall(request.options.vllm_args)),
    }


def _act(action: str, target: str, details: Mapping[str, Scalar]) -> Act:
    caller = current_principal()
    return Act(
        action,
        client_id=caller.client_id,
        tenant=caller.tenant,
        target=target,
        peer="" if (address := current_address()) is None else str(address),
        details=details,
    )
