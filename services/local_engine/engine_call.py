"""One request on its way through an engine: encoded, submitted, its deltas put on the wire.

Where it may run, and whether there is room, the handler has decided before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import MODEL_LEFT, Fault, Work, fault_of
from services.chassis.model_handler import Outlet
from services.chassis.prompt_blocks import (
    BLOCK_BYTES,
    bytes_before_images,
    prompt_blocks,
    prompt_bytes,
)
from services.local_engine import admission, forms, wire
from services.local_engine.engine import (
    AnswerParser,
    Continuation,
    Delta,
    Engine,
    Finish,
    Job,
    Media,
    SamplingSpec,
)
from services.local_engine.engine_metrics import RequestTimes
from services.local_engine.images.limits import has_images
from services.local_engine.images.reader import ImageReader
from services.local_engine.job_output import JobOutput
from services.local_engine.load_reports import LoadReports
from services.local_engine.request_span import RequestSpan
from services.local_engine.roster import Served

T = TypeVar("T")


class EngineCall:
    """One request between `open` and the end of its outlet.

    `room` raises Fault OVERLOADED when so many tokens of a prompt are too many to wait.
    """

    __slots__ = (
        "_continuation",
        "_engine",
        "_first",
        "_images",
        "_job_id",
        "_outlet",
        "_parser",
        "_reports",
        "_request",
        "_request_id",
        "_room",
        "_sent",
        "_served",
        "_span",
        "_spec",
        "_submitted",
        "_tenant",
        "_times",
        "_waits_for",
        "ended",
    )

    def __init__(
        self,
        *,
        served: Served,
        job_id: str,
        request: pb.GenerateRequest,
        spec: SamplingSpec,
        continuation: Continuation,
        parser: AnswerParser | None,
        outlet: Outlet,
        request_id: str,
        tenant: str,
        room: Callable[[int], None],
        times: RequestTimes,
        reports: LoadReports,
        span: RequestSpan | None,
        images: ImageReader,
    ) -> None:
        self._images = images
        self._waits_for: asyncio.Task[Any] | None = None
        self._span = span
        self._served = served
        self._engine = served.engine
        self._job_id = job_id
        self._request = request
        self._spec = spec
        self._continuation = continuation
        self._parser = parser
        self._outlet = outlet
        self._request_id = request_id
        self._tenant = tenant
        self._room = room
        self._times = times
        self._reports = reports
        self._first = True
        self._submitted = False
        self._sent = 0
        self.ended = False
        served.enter(self)

    @property
    def engine(self) -> Engine:
        """Where it runs."""
        return self._engine

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
                plain = self._pass_on if self._parser is None else None
                self._engine.submit(job, self._deliver, self._fail, plain)
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

    def cut(self, why: str) -> None:
        """Fails the request, whose model leaves; what was sent of it can be gone on with."""
        if self.ended:
            return
        work = Work.OUTPUT_SEEN if self._sent else Work.MAYBE_BILLED
        told = {"tokens_delivered": str(self._sent), "cause": MODEL_LEFT}
        self._fail(Fault(errors_pb2.ERROR_REASON_BACKEND_LOST, why, work=work, metadata=told))
        if self._submitted:
            self._engine.abort(self._job_id)

    def not_submitted(self, why: str) -> None:
        """The service ends before the engine got the request, which fails. Else no effect."""
        if not self._submitted:
            self._fail(
                Fault(errors_pb2.ERROR_REASON_BACKEND_LOST, why, metadata={"tokens_delivered": "0"})
            )

    async def _job(self) -> Job:
        engine, continuation = self._engine, self._continuation
        if self._parser is not None:
            self._spec = await self._parser.shape(self._spec)
        facts, spec = engine.facts, self._spec
        forms.check_combination(spec)
        admission.check_bytes(self._request, facts)
        self._check_open()
        if spec.constraint is not None:
            # Before a turn at pictures is taken, which none may hold while a form is judged.
            await self._while_open(engine.check_form(spec.constraint, self._tenant))
        prompt, media = await self._prompt()
        self._check_open()
        if continuation.text and not continuation.token_ids:
            # A caller that has only the text: the model goes on after its tokens all the same.
            existing = tuple(await engine.encode_text(continuation.text))
            self._check_open()
            continuation = Continuation(existing, continuation.text)
        if self._parser is not None:
            continuation = self._parser.begin(self._spec, prompt, continuation)
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
        self._room(len(prompt) + len(continuation.token_ids))
        adapter = self._served.adapter
        names: tuple[int, ...] = ()
        size = 0
        # What an adapter makes of a prompt is not among what the engine tells to be held.
        if engine.prefixes is not None and not adapter:
            names, size = prompt_blocks(self._request), prompt_bytes(self._request)
            if media is not None:
                # Beyond the first image equal tokens do not mean an equal prompt.
                size = bytes_before_images(self._request)
                names = names[: size // BLOCK_BYTES]
        return Job(
            self._job_id,
            prompt,
            self._spec,
            max_tokens,
            continuation,
            wire.priority_of(self._request),
            names,
            size,
            adapter,
            media,
        )

    async def _prompt(self) -> tuple[list[int], Media | None]:
        if not has_images(self._request):
            return await self._engine.encode(self._request), None
        request, engine = self._request, self._engine
        return await self._while_open(
            self._images.read(
                request, lambda found: engine.encode_with_images(request, found), self._tenant
            )
        )

    async def _while_open(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for it in a task of its own, which ends with the request: a cancelled one waits
        for no image and no verdict, and nobody works for it any more."""
        task = asyncio.create_task(work, name="request")
        self._waits_for = task
        try:
            await asyncio.wait({task})
        finally:
            self._waits_for = None
            task.cancel()
        self._check_open()
        return task.result()

    def _check_open(self) -> None:
        """Whoever has cancelled it has been told: no further step is taken."""
        if self.ended:
            raise Fault(errors_pb2.ERROR_REASON_CANCELLED, "the request was cancelled")

    def _deliver(self, delta: Delta) -> None:
        if self.ended:
            return
        if self._parser is not None:
            try:
                delta = self._parser.push(delta)
            except Fault as fault:
                self._fail(fault if self._first else fault.after(Work.OUTPUT_SEEN))
                self._engine.abort(self._job_id)
                return
        request_id, self._first = (self._request_id if self._first else ""), False
        last = delta.usage is not None
        if last:
            self._end()
        self._sent += len(delta.token_ids)
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

    def _pass_on(self, raw: bytes, tokens: int) -> None:
        """Output that is a chunk already; never the first, nor the last."""
        if not self.ended:
            self._sent += tokens
            self._times.tokens(tokens)
            self._reports.changed()
            self._outlet.chunk(raw, last=False, tokens=tokens)

    def _fail(self, fault: Fault) -> None:
        if not self.ended:
            self._end()
            self._times.failed(fault)
            if self._span is not None:
                self._span.failed(fault)
            self._reports.changed()
            self._outlet.fail(fault)

    def _end(self) -> None:
        self.ended = True
        self._served.leave(self)
        if self._waits_for is not None:
            self._waits_for.cancel()
