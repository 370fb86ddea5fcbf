"""Callers and backends of a scripted world, who note down whatever must not be.

A backend answers as one model would, see scripted_world.py; it begins, goes on and ends when told.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from contextlib import suppress
from typing import Any

import grpc

from anabranch.v1 import errors_pb2, relay_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Work, reason_name, to_status
from tests.support.scripted_backends import Backend, Frame

NAMES = {pb.TIER_LOCAL: "river-small", pb.TIER_CLOUD: "river-large"}
PRICES = pb.TokenPrices(input=1_000_000, output=1_000_000)
SLOTS = 4
_NOT_BEGUN = (
    errors_pb2.ERROR_REASON_OVERLOADED,
    errors_pb2.ERROR_REASON_DRAINING,
    errors_pb2.ERROR_REASON_UNSUPPORTED,
)
_BEGUN = (
    errors_pb2.ERROR_REASON_INTERNAL,
    errors_pb2.ERROR_REASON_PROVIDER_ERROR,
    errors_pb2.ERROR_REASON_INVALID_REQUEST,
)
# What a caller may hear, whatever happened; anything else is a bug.
_HEARD = {
    *_NOT_BEGUN,
    *_BEGUN,
    errors_pb2.ERROR_REASON_BACKEND_LOST,
    errors_pb2.ERROR_REASON_NO_BACKEND,
    errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
    errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED,
    errors_pb2.ERROR_REASON_ACCESS_DENIED,
    errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
} - {errors_pb2.ERROR_REASON_DRAINING}


def token_at(prompt: str, position: int) -> int:
    return zlib.crc32(f"{prompt}/{position}".encode()) % 50_000 + 1


def text_of(prompt: str, first: int, end: int) -> str:
    return "".join(f" {token_at(prompt, at)}" for at in range(first, end))


class Question:
    """A request, its caller, and all that anybody did about it."""

    def __init__(self, prompt: str, request: pb.GenerateRequest, tenant: str) -> None:
        self.prompt = prompt
        self.request = request
        self.asked = pb.GenerateRequest()
        self.asked.CopyFrom(request)  # the router writes into its own
        self.tenant = tenant
        self.limit = request.sampling.max_tokens
        self.wrong: list[str] = []
        self.sent_to: list[str] = []
        self.begun = 0  # by so many backends, whatever became of it there
        self.cancel: Any = None
        self.cancelled = False
        self.breaks = False
        self.ends: list[str] = []
        self._text = ""
        self._tokens = 0

    @property
    def over(self) -> bool:
        return bool(self.ends)

    def note(self, what: str) -> None:
        self.wrong.append(f"{self.prompt}: {what}")

    # The outlet

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        if self.breaks:
            self.breaks = False
            raise RuntimeError("a bug of ours")
        chunk = pb.GenerateChunk.FromString(raw)
        if self.ends:
            self.note(f"a chunk after its end: {chunk}")
        self._text += chunk.text
        self._tokens += tokens
        if self._text != text_of(self.prompt, 0, self._tokens):
            self.note(f"heard {self._text!r}")
        if last:
            self._ended_with(chunk)

    def fail(self, fault: Fault) -> None:
        self.ends.append(reason_name(fault.reason))
        if len(self.ends) > 1:
            self.note(f"ended again: {self.ends}")
        if fault.reason == errors_pb2.ERROR_REASON_INTERNAL and "incident" in fault.metadata:
            return  # the bug that was asked for
        if fault.reason not in _HEARD:
            self.note(f"failed with {fault!r}")
        said = fault.metadata.get("tokens_delivered")
        if said is not None and int(said) != self._tokens:
            self.note(f"{said} tokens said to be delivered, not {self._tokens}")
        if fault.work is Work.NOT_DISPATCHED and (self.begun or self._tokens):
            self.note(f"said not to have been begun: {fault!r}")

    def _ended_with(self, chunk: pb.GenerateChunk) -> None:
        self.ends.append(pb.FinishReason.Name(chunk.finish_reason))
        if len(self.ends) > 1:
            self.note(f"ended again: {self.ends}")
        if chunk.finish_reason == pb.FINISH_REASON_LENGTH:
            if self._tokens != self.limit:
                self.note(f"whole after {self._tokens} tokens of {self.limit}")
        elif chunk.finish_reason != pb.FINISH_REASON_CANCELLED or not self.cancelled:
            self.note(f"ended with {chunk.finish_reason}")
        attempts = sorted(attempt.backend_id for attempt in chunk.receipt.attempts)
        if attempts != sorted(self.sent_to):
            self.note(f"the receipt names {attempts}, it was sent to {self.sent_to}")


class Job:
    """A request at a backend."""

    def __init__(self, question: Question, request: pb.GenerateRequest, at: int) -> None:
        self.question = question
        self.at = at
        self.max_cost: int | None = None
        if request.routing.HasField("max_cost_microusd"):
            self.max_cost = request.routing.max_cost_microusd
        self.cancelled = False


class Worker(Backend):
    """A backend that checks what it is asked, and answers when the world says so."""

    def __init__(self, id: str, tier: pb.Tier.ValueType, questions: dict[str, Question]) -> None:
        resumes = [pb.CAPABILITY_RESUME_TEXT]
        if tier == pb.TIER_LOCAL:
            resumes.append(pb.CAPABILITY_RESUME_TOKENS)
        prices = PRICES if tier == pb.TIER_CLOUD else None
        super().__init__(id, tier, resumes, models=[NAMES[tier]], prices=prices)
        self.tier = tier
        self.jobs: dict[int, Job] = {}
        self.wrong: list[str] = []
        self._questions = questions
        self._starts_seen = 0
        self._cut = asyncio.Event()

    async def _session(self, requests: Any, context: grpc.aio.ServicerContext) -> None:
        await self.may_greet.wait()
        self.jobs.clear()
        self._starts_seen = 0
        self._cut.clear()
        await context.write(relay_pb2.RelaySessionResponse(ready=self._ready))
        self._context = context
        reading = asyncio.create_task(self._read(requests))
        cut = asyncio.create_task(self._cut.wait())
        try:
            await asyncio.wait((reading, cut), return_when=asyncio.FIRST_COMPLETED)
        finally:
            reading.cancel()
            cut.cancel()
            if self._context is context:
                self._context = None
                self.jobs.clear()
        if self._cut.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    async def _read(self, requests: Any) -> None:
        async for message in requests:
            for frame in message.frames:
                if frame.WhichOneof("action") == "cancel":
                    if frame.stream in self.jobs:
                        self.jobs[frame.stream].cancelled = True
                else:
                    self._begin(frame)

    def _begin(self, frame: relay_pb2.RelaySessionRequestFrame) -> None:
        request = pb.GenerateRequest.FromString(frame.start)
        question = self._questions[request.prompt]
        self._starts_seen += 1
        given = request.continuation
        at = len(given.token_ids) or given.text.count(" ")
        job = self.jobs[frame.stream] = Job(question, request, at)
        question.begun += 1
        if list(given.token_ids) != [token_at(request.prompt, n) for n in range(at)][
            : len(given.token_ids)
        ] or given.text != text_of(request.prompt, 0, at):
            question.note(f"to be gone on with after {given}")
        if request.sampling.max_tokens + at != question.limit:
            question.note(f"{request.sampling.max_tokens} tokens asked for after {at}")
        if request.model != NAMES[self.tier]:
            question.note(f"asked for as {request.model!r}")
        if not request.timeout.ToNanoseconds():
            question.note("no deadline")
        own = question.asked.routing
        allowed = own.max_cost_microusd if own.HasField("max_cost_microusd") else None
        if self.tier == pb.TIER_CLOUD:
            if own.residency == pb.RESIDENCY_LOCAL_ONLY or question.tenant == "lab":
                question.note("it left")
            if list(frame.mask) != [pb.PII_KIND_EMAIL]:
                question.note(f"left with only {frame.mask} masked")
            if question.tenant == "shop" and job.max_cost is None:
                question.note("may cost anything")
            if allowed is not None and (job.max_cost is None or job.max_cost > allowed):
                question.note(f"may cost {job.max_cost}, not {allowed}")
        else:
            if own.residency == pb.RESIDENCY_CLOUD_ONLY:
                question.note("it stayed")
            if (job.max_cost is None) != (allowed is None):
                question.note(f"a limit of {job.max_cost} came along, not {allowed}")

    # What the world makes it do; nothing once its session is over.

    async def tell(self, *frames: Frame, **said: Any) -> None:
        context = self._context
        if context is None:
            return
        busy = sum(not job.cancelled for job in self.jobs.values())
        load = said.pop("load", None) or self.load(busy)
        with suppress(Exception):  # whatever grpc says of a session that is just over
            await context.write(relay_pb2.RelaySessionResponse(frames=frames, load=load, **said))

    def load(self, running: int) -> session_pb2.LoadReport:
        return session_pb2.LoadReport(
            running=min(running, SLOTS),
            max_running=SLOTS,
            starts_seen=self._starts_seen,
            step_time={"nanos": 1_000_000},
        )

    def goes_on(self, number: int, most: int, cost: random.Random) -> Frame:
        """The next tokens of a job, or its end when there are no more, or it was cancelled."""
        job = self.jobs[number]
        prompt, limit = job.question.prompt, job.question.limit
        first, end = job.at, min(job.at + most, limit)
        if job.cancelled:
            end = first
        last = end >= limit or job.cancelled
        job.at = end
        chunk = pb.GenerateChunk(first_token=first, text=text_of(prompt, first, end))
        if self.tier == pb.TIER_LOCAL:
            chunk.token_ids.extend([token_at(prompt, at) for at in range(first, end)])
        if last:
            del self.jobs[number]
            chunk.finish_reason = (
                pb.FINISH_REASON_CANCELLED if job.cancelled else pb.FINISH_REASON_LENGTH
            )
            if self.tier == pb.TIER_CLOUD:
                allowed = 50 if job.max_cost is None else job.max_cost
                chunk.receipt.cost_microusd = cost.randint(0, allowed)
        return Frame(stream=number, chunk=chunk.SerializeToString(), last=last, tokens=end - first)

    def fails(self, number: int, draw: random.Random) -> Frame:
        """The error that a job ends with."""
        job = self.jobs.pop(number)
        begun = draw.random() < 0.5
        reason = draw.choice(_BEGUN if begun else _NOT_BEGUN)
        work = Work.MAYBE_BILLED if begun else Work.NOT_DISPATCHED
        if not begun:
            job.question.begun -= 1
        status = to_status(Fault(reason, "as it was drawn", work=work))
        return Frame(stream=number, error=status.SerializeToString(), last=True)

    def cut(self) -> None:
        """The session ends, and whatever ran there is lost."""
        self._cut.set()
