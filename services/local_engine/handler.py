"""Serves the chassis' ModelHandler with an engine: requests in, chunks out.

It decides nothing about generation: encoding, sampling and scheduling are the engine's, the
wire's RPCs, deadlines and sessions the chassis'.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from anabranch.v1 import errors_pb2, model_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.chassis.model_handler import CallContext, Cancel, Outlet
from services.chassis.prefix_log import PrefixLog
from services.chassis.trace_context import sampled_trace
from services.chassis.tracing import RequestTracer
from services.local_engine import admission, wire
from services.local_engine.chat_turns import unsupported
from services.local_engine.embedding import EmbedDesk
from services.local_engine.engine import Engine
from services.local_engine.engine_call import EngineCall
from services.local_engine.engine_metrics import EngineMetrics
from services.local_engine.images.limits import has_images
from services.local_engine.images.reader import ImageReader
from services.local_engine.lanes import Lanes
from services.local_engine.load_reports import LoadReports
from services.local_engine.request_span import span_of
from services.local_engine.roster import Roster, Served


@dataclass(frozen=True, slots=True)
class BackendIdentity:
    """Who this backend is, as its sessions' first message tells."""

    backend_id: str
    version: str
    zone: str


class EngineHandler:
    """ModelHandler over the engines of a roster.

    `encode_requests` must be running, once for each lane; `identity` is asked when a session
    opens, because the address it contains is known only once the process listens.
    """

    LANES = Lanes.COUNT

    def __init__(
        self,
        roster: Roster,
        *,
        identity: Callable[[], BackendIdentity],
        draining: Callable[[], bool],
        hung: Callable[[], bool],
        metrics: EngineMetrics,
        tracer: RequestTracer,
        max_waiting: int,
        max_waiting_tokens: int,
        max_message_bytes: int,
        images: ImageReader,
    ) -> None:
        self._images = images
        self._embeds = EmbedDesk(
            metrics, most_texts=max_waiting, max_message_bytes=max_message_bytes
        )
        self._tracer = tracer
        self._roster = roster
        self._identity = identity
        self._hung = hung
        self._metrics = metrics
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._job_ids = itertools.count(1)
        self._lanes = Lanes()
        self._reports = LoadReports(
            roster, encoding=lambda: len(self._lanes), draining=draining, clock=metrics.clock
        )

    def open(self, request: pb.GenerateRequest, context: CallContext, outlet: Outlet) -> Cancel:
        """Takes a request; refuses with Fault MODEL_NOT_FOUND, MODEL_ASLEEP, UNSUPPORTED,
        OVERLOADED or, while an engine hangs, BACKEND_LOST."""
        served = self._check_model(request.model)
        spec = wire.sampling_of(request)
        parser = served.engine.parser_for(request)
        continuation = wire.continuation_of(request, spec)
        self._check_room(served.engine)
        self._check_generates(served)
        images = has_images(request)
        if images:
            self._images.check(request, served.engine.facts, context.caller.tenant)
        call = EngineCall(
            served=served,
            job_id=str(next(self._job_ids)),
            request=request,
            spec=spec,
            continuation=continuation,
            parser=parser,
            outlet=outlet,
            request_id=context.request_id,
            tenant=context.caller.tenant,
            room=functools.partial(self._check_tokens, served.engine),
            times=self._metrics.request(request.model, sampled_trace(context.traceparent)),
            reports=self._reports,
            span=span_of(self._tracer, request, context),
            images=self._images,
        )
        # A parser of tool calls may ask for a form, too.
        form = spec.constraint is not None or parser is not None
        self._lanes.put(call, request, images=images, form=form)
        self._reports.changed()
        return call.cancel

    async def encode_requests(self, lane: int) -> None:
        """Encodes and submits the requests of a lane in order of arrival, until cancelled.

        What it has not submitted by then fails: no drain waits for what nobody encodes.
        """
        await self._lanes.run(lane)

    async def embed(
        self, request: model_pb2.EmbedRequest, context: CallContext
    ) -> model_pb2.EmbedResponse:
        """Embeds, where the model does that."""
        served = self._check_model(request.model)
        self._check_room(served.engine)
        with served.asked() as engine:
            return await self._embeds.embed(engine, request, context)

    async def count_tokens(
        self, request: model_pb2.CountTokensRequest, context: CallContext
    ) -> model_pb2.CountTokensResponse:
        """Counts with the model's own tokenizer and chat template."""
        served = self._check_model(request.model)
        self._check_room(served.engine)
        with served.asked() as engine:
            asked, tenant = request.request, context.caller.tenant
            if has_images(asked):
                # Text alone is counted whatever its length: nothing of it is kept.
                admission.check_bytes(asked, engine.facts)
                self._images.check(asked, engine.facts, tenant)
                token_ids, _ = await self._images.read(
                    asked, lambda found: engine.encode_with_images(asked, found), tenant
                )
            else:
                token_ids = await engine.encode(asked)
            return model_pb2.CountTokensResponse(
                prompt_tokens=len(token_ids),
                context_length=engine.facts.context_length,
                source=pb.Usage.SOURCE_PROVIDER,
            )

    async def list_models(self) -> Sequence[pb.ModelInfo]:
        """The models served here. Raises Fault MODEL_LOADING before the first one is."""
        return self._roster.models()

    def ready(self) -> session_pb2.SessionReady:
        """Who this is, and what it serves."""
        identity = self._identity()
        return session_pb2.SessionReady(
            backend_id=identity.backend_id,
            tier=pb.TIER_LOCAL,
            models=self._roster.models(),
            version=identity.version,
            zone=identity.zone,
        )

    def load(self) -> session_pb2.LoadReport:
        """The engine's load, requests that are not yet encoded included."""
        return self._reports.now()

    def prefix_log(self) -> PrefixLog | None:
        """What the engines' prefix caches hold, where the first one tells it."""
        first = next(iter(self._roster.engines), None)
        return None if first is None or first.prefixes is None else self._roster.prefixes

    @property
    def models_version(self) -> int:
        """Another number whenever other models are served."""
        return self._roster.version

    def served_models(self) -> session_pb2.ServedModels:
        """The models that take requests now."""
        return session_pb2.ServedModels(models=self._roster.models())

    def _check_model(self, name: str) -> Served:
        return self._roster.find(name)

    @staticmethod
    def _check_generates(served: Served) -> None:
        if pb.CAPABILITY_GENERATE not in served.engine.facts.capabilities:
            raise unsupported("generate", "this model embeds and generates nothing")

    def _check_room(self, engine: Engine) -> None:
        """Of one engine: that another model is busy keeps nobody from an idle one."""
        if self._lanes.closed or self._hung():
            raise Fault(
                errors_pb2.ERROR_REASON_BACKEND_LOST,
                f"the engine {'has stopped' if self._lanes.closed else 'hangs'} and takes no work",
                retry_after=5.0,
            )
        load = engine.load()
        waiting = load.waiting + self._lanes.waiting(engine)
        if waiting >= self._max_waiting:
            raise Fault(
                errors_pb2.ERROR_REASON_OVERLOADED,
                f"{waiting} requests wait here already",
                retry_after=1.0,
            )
        admission.check_queue(load, 0, self._max_waiting_tokens)

    def _check_tokens(self, engine: Engine, tokens: int) -> None:
        admission.check_queue(engine.load(), tokens, self._max_waiting_tokens)
