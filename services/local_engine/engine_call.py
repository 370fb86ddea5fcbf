"""One request on its way through an engine: encoded, submitted, its deltas put on the wire.

Where it may run, and whether there is room, the handler has decided before.
"""

from __future__ import annotations

from collections.abc import Callable

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, fault_of
from services.chassis.model_handler import Outlet
from services.chassis.prompt_blocks import prompt_blocks, prompt_bytes
from services.local_engine import admission, forms, wire
from services.local_engine.engine import Continuation, Delta, Engine, Finish, Job, SamplingSpec
from services.local_engine.engine_metrics import RequestTimes
from services.local_engine.job_output import JobOutput
from services.local_engine.load_reports import LoadReports
from services.local_engine.request_span import RequestSpan


class EngineCall:
    """One request between `open` and the end of its outlet.

    `room` raises Fault OVERLOADED when so many tokens of a prompt are too many to wait.
    """

    __slots__ = (
        "_continuation",
        "_engine",
        "_first",
        "_job_id",
        "_outlet",
        "_reports",
        "_request",
        "_request_id",
        "_room",
        "_span",
        "_spec",
        "_submitted",
        "_tenant",
        "_times",
        "ended",
    )

    def __init__(
        self,
        *,
        engine: Engine,
        job_id: str,
        request: pb.GenerateRequest,
        spec: SamplingSpec,
        continuation: Continuation,
        outlet: Outlet,
        request_id: str,
        tenant: str,
        room: Callable[[int], None],
        times: RequestTimes,
        reports: LoadReports,
        span: RequestSpan | None,
    ) -> None:
        self._span = span
        self._engine = engine
        self._job_id = job_id
        self._request = request
        self._spec = spec
        self._continuation = continuation
        self._outlet = outlet
        self._request_id = request_id
        self._tenant = tenant
        self._room = room
        self._times = times
        self._reports = reports
        self._first = True
        self._submitted = False
        self.ended = False

    async def start(self) -> None:
        """Encodes the request and hands it to the engine; what is wrong with it ends it."""
        if self.ended:
            return
        try:
            job = await self._job()
            if not self.ended:
                self._submitted = True
                self._reports.changed()
                if self._span is not None:
                    existing = len(job.continuation.token_ids)
                    self._span.submitted(len(job.prompt_token_ids), existing)
                self._engine.submit(job, self._deliver, self._fail)
        except Exception as error:  # noqa: BLE001 - the edge: what a request raises ends it alone
            self._fail(fault_of(error))

    def cancel(self) -> None:
        """Ends the request as cancelled, wherever it is. Idempotent."""
        if self.ended:
            return
        if self._submitted:
            self._engine.abort(self._job_id)
            return
        job = Job(self._job_id, (), self._spec, 0, self._continuation)
        JobOutput(job, self._deliver, self._fail).cancel()

    async def _job(self) -> Job:
        engine, continuation = self._engine, self._continuation
        facts, spec = engine.facts, self._spec
        forms.check_combination(spec)
        admission.check_bytes(self._request, facts)
        prompt = await engine.encode(self._request)
        if continuation.text and not continuation.token_ids:
            # A caller that has only the text: the model goes on after its tokens all the same.
            existing = tuple(await engine.encode_text(continuation.text))
            continuation = Continuation(existing, continuation.text)
        max_tokens = wire.resolve_max_tokens(
            self._spec.max_tokens,
            prompt_tokens=len(prompt),
            existing_tokens=len(continuation.token_ids),
            context_length=facts.context_length,
        )
        if spec.n > 1:
            max_tokens = admission.within_cache(
                max_tokens,
                wanted=spec.max_tokens,
                n=spec.n,
                prompt_tokens=len(prompt),
                kv_tokens=engine.load().kv_total_tokens,
            )
        if spec.constraint is not None:
            await engine.check_form(spec.constraint, self._tenant)
        self._room(len(prompt) + len(continuation.token_ids))
        tells = engine.prefixes is not None
        return Job(
            self._job_id,
            prompt,
            self._spec,
            max_tokens,
            continuation,
            wire.priority_of(self._request),
            prompt_blocks(self._request) if tells else (),
            prompt_bytes(self._request) if tells else 0,
        )

    def _deliver(self, delta: Delta) -> None:
        if self.ended:
            return
        request_id, self._first = (self._request_id if self._first else ""), False
        last = delta.usage is not None
        self.ended = last
        self._times.tokens(len(delta.token_ids))
        if self._span is not None:
            if delta.token_ids:
                self._span.output()
            if delta.usage is not None:
                self._span.finished(delta.finish, delta.usage)
        if last and delta.usage is not None:
            outcome = "cancelled" if delta.finish is Finish.CANCELLED else "ok"
            self._times.end(outcome, delta.usage.prompt, delta.usage.completion)
        raw = wire.chunk_of(delta, request_id).SerializeToString()
        self._reports.changed()
        self._outlet.chunk(raw, last=last, tokens=len(delta.token_ids))

    def _fail(self, fault: Fault) -> None:
        if not self.ended:
            self.ended = True
            self._times.end("error", 0, 0)
            if self._span is not None:
                self._span.failed(fault)
            self._reports.changed()
            self._outlet.fail(fault)
