"""Serves the chassis' ModelHandler with an engine: requests in, chunks out.

It decides nothing about generation: encoding, sampling and scheduling are the engine's, the
wire's RPCs, deadlines and sessions the chassis'.
"""

from __future__ import annotations

import asyncio
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
from services.local_engine.engine import Engine
from services.local_engine.engine_call import EngineCall
from services.local_engine.engine_metrics import EngineMetrics
from services.local_engine.load_reports import LoadReports
from services.local_engine.request_span import span_of

_FORMED = 2  # the lane of requests whose form must be judged
LONG_REQUEST_BYTES = 4096
"""Serialised requests above this are encoded apart, so that short ones need not wait for them."""


@dataclass(frozen=True, slots=True)
class BackendIdentity:
    """Who this backend is, as its sessions' first message tells."""

    backend_id: str
    version: str
    zone: str


class EngineHandler:
    """ModelHandler over one engine.

    `encode_requests` must be running, once for each lane; `identity` is asked when a session
    opens, because the address it contains is known only once the process listens.
    """

    LANES = 3
    """Short requests, long ones, and those whose form must be judged, which may take a while."""

    def __init__(
        self,
        engine: Engine,
        *,
        names: Sequence[str],
        identity: Callable[[], BackendIdentity],
        draining: Callable[[], bool],
        hung: Callable[[], bool],
        metrics: EngineMetrics,
        tracer: RequestTracer,
        max_waiting: int,
        max_waiting_tokens: int = 0,
    ) -> None:
        self._tracer = tracer
        self._engine = engine
        self._names = frozenset(names)
        self._aliases = tuple(names[1:])
        self._identity = identity
        self._hung = hung
        self._metrics = metrics
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._being_judged: set[asyncio.Task[None]] = set()
        self._job_ids = itertools.count(1)
        self._reports = LoadReports(
            engine, encoding=self._encoding, draining=draining, clock=metrics.clock
        )
        self._lanes: tuple[asyncio.Queue[EngineCall], ...] = tuple(
            asyncio.Queue() for _ in range(self.LANES)
        )

    def open(self, request: pb.GenerateRequest, context: CallContext, outlet: Outlet) -> Cancel:
        """Takes a request; refuses with Fault MODEL_NOT_FOUND, UNSUPPORTED, OVERLOADED or,
        while the engine hangs, BACKEND_LOST."""
        self._check_model(request.model)
        spec = wire.sampling_of(request)
        continuation = wire.continuation_of(request, spec)
        formed = spec.constraint is not None
        lane = self._lanes[_FORMED if formed else request.ByteSize() > LONG_REQUEST_BYTES]
        self._check_room()
        call = EngineCall(
            engine=self._engine,
            job_id=str(next(self._job_ids)),
            request=request,
            spec=spec,
            continuation=continuation,
            outlet=outlet,
            request_id=context.request_id,
            tenant=context.caller.tenant,
            room=self._check_tokens,
            times=self._metrics.request(request.model, sampled_trace(context.traceparent)),
            reports=self._reports,
            span=span_of(self._tracer, request, context),
        )
        lane.put_nowait(call)
        self._reports.changed()
        return call.cancel

    async def encode_requests(self, lane: int) -> None:
        """Encodes and submits the requests of a lane in order of arrival, until cancelled."""
        queue = self._lanes[lane]
        if lane == _FORMED:
            await self._judge_requests(queue)
        while True:
            call = await queue.get()
            await call.start()

    async def _judge_requests(self, queue: asyncio.Queue[EngineCall]) -> None:
        """Those whose form must be judged do not wait for each other's verdict."""
        async with asyncio.TaskGroup() as group:
            while True:
                call = await queue.get()
                task = group.create_task(call.start())
                self._being_judged.add(task)
                task.add_done_callback(self._being_judged.discard)

    async def embed(
        self, request: model_pb2.EmbedRequest, context: CallContext
    ) -> model_pb2.EmbedResponse:
        """Refuses: a generating model has no embeddings."""
        self._check_model(request.model)
        raise wire.unsupported("embed", "this model does not embed")

    async def count_tokens(
        self, request: model_pb2.CountTokensRequest, context: CallContext
    ) -> model_pb2.CountTokensResponse:
        """Counts with the model's own tokenizer and chat template."""
        self._check_model(request.model)
        token_ids = await self._engine.encode(request.request)
        return model_pb2.CountTokensResponse(
            prompt_tokens=len(token_ids),
            context_length=self._engine.facts.context_length,
            source=pb.Usage.SOURCE_PROVIDER,
        )

    async def list_models(self) -> Sequence[pb.ModelInfo]:
        """The one model served here. Raises Fault MODEL_LOADING before it is."""
        return [wire.model_info(self._engine.facts, self._aliases)]

    def ready(self) -> session_pb2.SessionReady:
        """Who this is, and what it serves."""
        identity = self._identity()
        return session_pb2.SessionReady(
            backend_id=identity.backend_id,
            tier=pb.TIER_LOCAL,
            models=[wire.model_info(self._engine.facts, self._aliases)],
            version=identity.version,
            zone=identity.zone,
        )

    def load(self) -> session_pb2.LoadReport:
        """The engine's load, requests that are not yet encoded included."""
        return self._reports.now()

    def prefix_log(self) -> PrefixLog | None:
        """What the engine's prefix cache holds."""
        return self._engine.prefixes

    def _encoding(self) -> int:
        return sum(lane.qsize() for lane in self._lanes) + len(self._being_judged)

    def _check_model(self, name: str) -> None:
        if name not in self._names:
            raise Fault(
                errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
                f"this backend does not serve {name!r}",
                metadata={"model": name},
            )

    def _check_room(self) -> None:
        if self._hung():
            raise Fault(
                errors_pb2.ERROR_REASON_BACKEND_LOST,
                "the engine hangs and takes no work",
                retry_after=5.0,
            )
        load = self._engine.load()
        waiting = load.waiting + self._encoding()
        if waiting >= self._max_waiting:
            raise Fault(
                errors_pb2.ERROR_REASON_OVERLOADED,
                f"{waiting} requests wait here already",
                retry_after=1.0,
            )
        admission.check_queue(load, 0, self._max_waiting_tokens)

    def _check_tokens(self, tokens: int) -> None:
        admission.check_queue(self._engine.load(), tokens, self._max_waiting_tokens)
