"""Callers who check every word that they hear of their answers.

What an answer must be follows from its request alone: the simulation's tokens are a function of
prompt, choice and position.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import grpc

from anabranch import AnabranchError, AsyncClient, Chunk
from anabranch.streams import AnswerStream
from anabranch.v1 import errors_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, fault_from_rpc_error, fault_from_status, reason_name
from services.local_engine.simulation import tokenizer as sim_tokenizer
from services.local_engine.simulation.model import answer_seed, natural_length, token_at
from tests.support.inprocess import MODEL, model_stub

MEAN = 80
"""Mean length of an answer that its limit does not cut."""
AFTER_A_LOSS = {
    errors_pb2.ERROR_REASON_BACKEND_LOST,
    errors_pb2.ERROR_REASON_NO_BACKEND,
    errors_pb2.ERROR_REASON_OVERLOADED,
    # With its last backend a model leaves the router's list.
    errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
}


def whole_answer(prompt: str, choice: int, limit: int) -> list[int]:
    """Every token of an answer that nothing cuts short but its limit."""
    seed = answer_seed(sim_tokenizer.encode(prompt), choice)
    natural = natural_length(seed, MEAN)
    tokens = [token_at(seed, at) for at in range(min(natural, limit))]
    return tokens if natural >= limit else [*tokens, sim_tokenizer.EOS]


class Answer:
    """A request, and what its caller has heard of it. `wrong`: what it must not have heard."""

    def __init__(self, prompt: str, limit: int, choices: int) -> None:
        self.request = pb.GenerateRequest(model=MODEL, prompt=prompt)
        self.request.sampling.max_tokens = limit
        self.request.sampling.n = choices
        self._expected = [whole_answer(prompt, n, limit) for n in range(choices)]
        self._tokens: list[list[int]] = [[] for _ in range(choices)]
        self._texts = [""] * choices
        self._finished = [pb.FINISH_REASON_UNSPECIFIED] * choices
        self.wrong: list[str] = []
        self.ends = 0
        self.may_fail = False
        self.cancelled = False
        self.whole = False

    @property
    def delivered(self) -> int:
        return sum(map(len, self._tokens))

    def heard(self, chunk: pb.GenerateChunk, *, last: bool) -> None:
        """A chunk came."""
        if last and self.cancelled and self.may_fail and len(self._tokens) > 1:
            # What the router says in place of a lost backend knows one choice alone.
            self.ends += 1
            return
        mine, expected = self._tokens[chunk.index], self._expected[chunk.index]
        if self.ends:
            self._wrong(f"something after its end: {chunk}")
        if chunk.first_token != len(mine):
            self._wrong(f"position {chunk.first_token} after {len(mine)} tokens")
        mine += chunk.token_ids
        self._texts[chunk.index] += chunk.text
        if mine != expected[: len(mine)]:
            self._wrong(f"tokens {mine}, not {expected}")
        if self._texts[chunk.index] != sim_tokenizer.decode(mine):
            self._wrong(f"text {self._texts[chunk.index]!r}")
        if chunk.finish_reason:
            if self._finished[chunk.index]:
                self._wrong("two finish reasons for a choice")
            self._finished[chunk.index] = chunk.finish_reason
        if last:
            self._over(chunk)

    def heard_whole(self, response: pb.GenerateResponse) -> None:
        """The answer of Generate."""
        for at, choice in enumerate(response.choices):
            last = at == len(response.choices) - 1
            part = pb.GenerateChunk(
                index=choice.index,
                text=choice.text,
                token_ids=choice.token_ids,
                finish_reason=choice.finish_reason,
            )
            if last:
                part.usage.CopyFrom(response.usage)
                part.receipt.CopyFrom(response.receipt)
            self.heard(part, last=last)

    def failed(self, fault: Fault) -> None:
        """It ended with an error."""
        self.ends += 1
        said = f"{reason_name(fault.reason)}: {fault.message}"
        if self.ends > 1:
            self._wrong(f"a second end, {said}")
        if not self.may_fail or fault.reason not in AFTER_A_LOSS:
            self._wrong(f"failed, {said}")
        counted = fault.metadata.get("tokens_delivered")
        if counted is not None and int(counted) != self.delivered and not self.whole:
            self._wrong(f"{counted} tokens said to be delivered, {self.delivered} came")

    def _over(self, chunk: pb.GenerateChunk) -> None:
        self.ends += 1
        reasons = set(self._finished)
        if pb.FINISH_REASON_CANCELLED in reasons:
            if not self.cancelled:
                self._wrong("cancelled by nobody")
        elif self._tokens != self._expected:
            self._wrong(f"finished after {self._tokens}")
        elif not reasons <= {pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH}:
            self._wrong(f"finish reasons {reasons}")
        if chunk.usage.completion_tokens != self.delivered:
            self._wrong(f"{chunk.usage.completion_tokens} tokens counted, not {self.delivered}")
        if not chunk.HasField("receipt"):
            self._wrong("no receipt")

    def _wrong(self, what: str) -> None:
        self.wrong.append(f"{self.request.prompt}: {what}")


class Caller:
    """What sessions and plain calls share: a task that hears, unless it pauses."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.reads.set()
        self.answers: dict[int, Answer] = {}
        self.gone = False
        self._task = asyncio.create_task(self._hear())

    @property
    def open_answers(self) -> list[tuple[int, Answer]]:
        """Those that have not ended, by their number."""
        return [(n, answer) for n, answer in self.answers.items() if not answer.ends]

    @property
    def wrong(self) -> list[str]:
        found = [what for answer in self.answers.values() for what in answer.wrong]
        if self._task.done() and not self._task.cancelled() and self._task.exception():
            found.append(repr(self._task.exception()))
        return found

    async def leave(self) -> None:
        """Goes without a word: its connection to the RPC is cut."""
        self.gone = True
        self._call.cancel()
        self._task.cancel()
        await asyncio.wait([self._task])

    _call: Any

    async def _hear(self) -> None:
        raise NotImplementedError


class SessionCaller(Caller):
    """A caller with a session."""

    def __init__(self, channel: grpc.aio.Channel, auth: Any) -> None:
        self._call = model_stub(channel).Session(metadata=auth)
        self._numbers = itertools.count(1)
        super().__init__()

    async def start(self, answers: Sequence[Answer]) -> None:
        message = session_pb2.SessionRequest()
        for answer in answers:
            number = next(self._numbers)
            self.answers[number] = answer
            message.frames.add(stream=number, start=answer.request)
        await self._call.write(message)

    async def cancel(self, number: int) -> None:
        self.answers[number].cancelled = True
        frame = session_pb2.SessionRequestFrame(stream=number)
        frame.cancel.SetInParent()
        await self._call.write(session_pb2.SessionRequest(frames=[frame]))

    async def close(self) -> None:
        """Half-closes; every answer has ended. Returns once the session has."""
        await self._call.done_writing()
        await self._task
        assert await self._call.code() is grpc.StatusCode.OK

    async def _hear(self) -> None:
        await self._call.read()
        while True:
            await self.reads.wait()
            message = await self._call.read()
            if message is grpc.aio.EOF:
                return
            for frame in message.frames:
                answer = self.answers[frame.stream]
                if frame.HasField("error"):
                    answer.failed(fault_from_status(frame.error))
                    continue
                assert frame.tokens == len(frame.chunk.token_ids)
                answer.heard(frame.chunk, last=frame.last)


class PlainCaller(Caller):
    """A caller of StreamGenerate, or of Generate when it wants the whole."""

    def __init__(self, channel: grpc.aio.Channel, auth: Any, answer: Answer, *, whole: bool):
        stub = model_stub(channel)
        self._whole = answer.whole = whole
        self._call = (stub.Generate if whole else stub.StreamGenerate)(
            answer.request, metadata=auth
        )
        super().__init__()
        self.answers[0] = answer

    async def _hear(self) -> None:
        try:
            if self._whole:
                self.answers[0].heard_whole(await self._call)
                return
            while True:
                await self.reads.wait()
                chunk = await self._call.read()
                if chunk is grpc.aio.EOF:
                    break
                self.answers[0].heard(chunk, last=chunk.HasField("usage"))
        except grpc.aio.AioRpcError as error:
            self.answers[0].failed(fault_from_rpc_error(error))


class _Heard(AnswerStream):
    """The library's stream, each chunk of which is checked as it came."""

    def __init__(self, client: AsyncClient, answer: Answer) -> None:
        super().__init__(client.open, client.prepare(answer.request, {}))
        self._checked = answer

    def add(self, raw: bytes) -> Chunk:
        chunk = pb.GenerateChunk.FromString(raw)
        self._checked.heard(chunk, last=chunk.HasField("usage"))
        return super().add(raw)


class ReturningCaller(Caller):
    """A caller of the client library, whose sessions outlive their connections."""

    def __init__(self, client: AsyncClient, answer: Answer) -> None:
        self._client = client
        super().__init__()
        self.answers[0] = answer

    async def leave(self) -> None:
        self.gone = True
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _hear(self) -> None:
        try:
            async with _Heard(self._client, self.answers[0]) as stream:
                while True:
                    await self.reads.wait()
                    if await anext(stream, None) is None:
                        return
        except AnabranchError as error:
            reason = errors_pb2.ErrorReason.Value(f"ERROR_REASON_{error.reason}")
            self.answers[0].failed(Fault(reason, error.message, metadata=error.metadata))
