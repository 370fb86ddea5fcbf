"""Meters one request: reserves its quotas before it runs, and settles them when it has ended.

Stands between a request and its target, for callers that have quotas only. How buckets are kept is
gate.py's; whatever becomes of a request, its reservation ends once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from google.protobuf.message import DecodeError

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Work, fault_of
from services.chassis.model_handler import CallContext, Cancel, ModelHandler, Outlet
from services.chassis.principal import Principal
from services.chassis.quotas.gate import QuotaGate
from services.chassis.quotas.reservations import Reservation

ASSUMED_OUTPUT = 1024
"""Tokens of a choice that sets no max_tokens."""

TOKENS_PER_IMAGE = 1000
_BYTES_PER_TOKEN = 4

Reply = TypeVar("Reply")


class Request(Outlet, Protocol):
    """The request that is metered, as its handler sees it."""

    @property
    def ended(self) -> bool:
        """Whether it has had its last chunk, has failed or was abandoned."""


class MeteredRequest:
    """The target of a request with quotas, in front of the one that its output goes to.

    `cancel` is what the request is to call when it is cancelled, abandoned or out of time.
    """

    __slots__ = (
        *("_cancel", "_context", "_gate", "_handler", "_input", "_message", "_output"),
        *("_request", "_reservation", "_target"),
    )

    def __init__(self, gate: QuotaGate, request: Request, target: Outlet) -> None:
        self._gate = gate
        # Until it has ended: the request points here, and neither waits for the collector.
        self._request: Request | None = request
        self._target = target
        self._reservation: Reservation | None = None
        self._handler: ModelHandler | None = None
        self._cancel: Cancel | None = None
        self._input = 0
        self._output = 0

    def open(
        self, handler: ModelHandler, message: pb.GenerateRequest, context: CallContext
    ) -> None:
        """Opens the request as soon as its quotas allow it, or fails it."""
        self._handler, self._message, self._context = handler, message, context
        self._input = estimated_input(message)
        estimate = self._input + _longest_output(message)
        self._gate.ask(context.caller, message.model, estimate, self._decided)

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        self._output += tokens
        if last:
            self._settle(self._used(raw))
            self._let_go()
        self._target.chunk(raw, last=last, tokens=tokens)

    def fail(self, fault: Fault) -> None:
        nothing_ran = fault.work is Work.NOT_DISPATCHED
        self._settle(None if nothing_ran else self._input + self._output)
        self._target.fail(fault)
        if self._cancel is not None:
            # Not at once: a request whose time is over fails first and is cancelled then.
            asyncio.get_running_loop().call_soon(self._let_go)

    def cancel(self) -> None:
        """The handler stops; in the place of one that was not asked yet, this ends the answer."""
        cancel, request = self._cancel, self._request
        if request is None or request.ended:
            self._let_go()
        if request is not None and request.ended:
            # Abandoned: nobody says what it used.
            self._settle(self._input + self._output)
        elif request is not None and self._handler is not None:
            request.chunk(_nothing(self._message), last=True, tokens=0)
        if cancel is not None:
            cancel()

    def _decided(self, outcome: Reservation | Fault) -> None:
        request, handler, self._handler = self._request, self._handler, None
        if request is None or handler is None:
            if isinstance(outcome, Reservation):
                self._gate.release(outcome)
            return
        if isinstance(outcome, Fault):
            request.fail(outcome)
            return
        self._reservation = outcome
        try:
            cancel = handler.open(self._message, self._context, request)
        except Exception as exc:  # noqa: BLE001 - the edge: whatever a handler raises becomes a status
            request.fail(fault_of(exc))
            return
        if not request.ended:
            self._cancel = cancel

    def _settle(self, used: int | None) -> None:
        """It has ended, and used so many tokens; None: nothing ran."""
        self._request = self._handler = None
        reservation, self._reservation = self._reservation, None
        if reservation is None:
            return
        if used is None:
            self._gate.release(reservation)
        else:
            self._gate.settle(reservation, used)

    def _let_go(self) -> None:
        """What is over points at its handler no more, which points here."""
        self._cancel = None

    def _used(self, raw: bytes) -> int:
        """What the last chunk says, as far as it says anything."""
        try:
            usage = pb.GenerateChunk.FromString(raw).usage
        except DecodeError:
            return self._input + self._output
        read = usage.prompt_tokens if usage.prompt_tokens > 0 else self._input
        return read + (max(usage.completion_tokens, 0) if usage.source else self._output)


async def metered_reply(
    gate: QuotaGate | None,
    caller: Principal,
    model: str,
    tokens: int,
    answer: Callable[[], Awaitable[Reply]],
    used: Callable[[Reply], int | None],
) -> Reply:
    """The answer to a small RPC, counted as one request and as the tokens that it `used`; None:
    as many as estimated. Raises Fault, among others QUOTA_EXCEEDED.

    A relay is not counted: who it speaks for was, when it was asked.
    """
    if gate is None or not caller.quotas or caller.has("relay"):
        return await answer()
    reservation = await gate.reserve(caller, model, tokens)
    spent: int | None = tokens
    try:
        reply = await answer()
        known = used(reply)
        spent = tokens if known is None else known
        return reply
    except Fault as fault:
        if fault.work is Work.NOT_DISPATCHED:
            spent = None
        raise
    finally:
        if spent is None:
            gate.release(reservation)
        else:
            gate.settle(reservation, spent)


def estimated_input(request: pb.GenerateRequest) -> int:
    """Tokens of what is read: ids as they are, texts as four bytes a token, images by number."""
    size, images = len(request.prompt.encode()), 0
    for message in request.messages:
        for part in message.content:
            if part.HasField("image"):
                images += 1
            else:
                size += len(part.text.encode())
        for call in message.tool_calls:
            size += call.ByteSize()
    for tool in request.tools:
        size += tool.ByteSize()
    known = len(request.prompt_token_ids) + len(request.continuation.token_ids)
    return known + tokens_of(size) + TOKENS_PER_IMAGE * images


def tokens_of(size: int) -> int:
    """A guess at the tokens of a text of so many bytes."""
    return -(-size // _BYTES_PER_TOKEN)


def _longest_output(request: pb.GenerateRequest) -> int:
    sampling = request.sampling
    return (sampling.max_tokens or ASSUMED_OUTPUT) * max(sampling.n, 1)


def _nothing(request: pb.GenerateRequest) -> bytes:
    """The only chunk of an answer that was cancelled before it began."""
    position = len(request.continuation.token_ids)
    return pb.GenerateChunk(
        first_token=position,
        finish_reason=pb.FINISH_REASON_CANCELLED,
        usage=pb.Usage(completion_tokens=position, source=pb.Usage.SOURCE_PARTIAL),
        request_id=request.request_id,
    ).SerializeToString()
