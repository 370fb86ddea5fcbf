"""What engine, proxy and router each implement; the wire is carried by model_service.

Only the interfaces: an `Outlet` that output goes into, the context of a request, the
`ModelHandler` protocol, and what some handlers are as well: `HoldsPrefixes`, `ChangesModels`,
`TakesFeedback`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from anabranch.v1 import generation_pb2, model_pb2, session_pb2
from services.chassis.errors import Fault
from services.chassis.prefix_log import PrefixLog
from services.chassis.principal import Principal
from services.chassis.trace_context import trace_id_of

Cancel = Callable[[], None]


class Outlet(Protocol):
    """Where the output of one request goes. Used on the event loop only.

    A request ends with exactly one `chunk(last=True)` or one `fail()`; what is
    put in afterwards is dropped. Nothing here blocks: several chunks put in
    during one turn of the loop leave in one message.
    """

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        """Takes a serialised GenerateChunk that holds `tokens` output tokens."""

    def fail(self, fault: Fault) -> None:
        """Ends the request with an error."""


@dataclass(frozen=True, slots=True)
class CallContext:
    """One request's circumstances. `deadline` is in seconds of the loop's clock.

    `mask` holds the PiiKinds that a relay asks to have masked before the prompt leaves; one that
    this process does not know may be among them.
    """

    caller: Principal
    request_id: str
    deadline: float
    traceparent: str = ""
    mask: frozenset[int] = frozenset()


def ids_of(context: CallContext) -> dict[str, object]:
    """What every log line about a request carries: its id, and that of its trace if it has one."""
    trace_id = trace_id_of(context.traceparent)
    found: dict[str, object] = {"request_id": context.request_id}
    return {**found, "trace_id": trace_id} if trace_id else found


class ModelHandler(Protocol):
    """What a service does with requests."""

    def open(
        self,
        request: generation_pb2.GenerateRequest,
        context: CallContext,
        outlet: Outlet,
    ) -> Cancel:
        """Starts a validated request, its request_id set, and returns at once.

        Raises Fault to refuse. The returned cancel is idempotent; after it the
        outlet is ended soon, with a last chunk of FINISH_REASON_CANCELLED or an
        error.
        """

    async def embed(
        self, request: model_pb2.EmbedRequest, context: CallContext
    ) -> model_pb2.EmbedResponse:
        """Answers Embed. Raises Fault."""

    async def count_tokens(
        self, request: model_pb2.CountTokensRequest, context: CallContext
    ) -> model_pb2.CountTokensResponse:
        """Answers CountTokens. Raises Fault."""

    async def list_models(self) -> Sequence[generation_pb2.ModelInfo]:
        """Every model that can be asked for here, in any order."""

    def ready(self) -> session_pb2.SessionReady:
        """The first message of a session."""

    def load(self) -> session_pb2.LoadReport | None:
        """The load now; None from a service that reports none."""


@runtime_checkable
class HoldsPrefixes(Protocol):
    """What a ModelHandler is as well if its backend has a prefix cache of its own."""

    def prefix_log(self) -> PrefixLog | None:
        """What the cache holds and what changes in it; None when that is not told."""


@runtime_checkable
class ChangesModels(Protocol):
    """What a ModelHandler is as well if what it serves may change while sessions are open."""

    @property
    def models_version(self) -> int:
        """Another number whenever `served_models` has changed."""

    def served_models(self) -> session_pb2.ServedModels:
        """Every model that takes requests now."""


@runtime_checkable
class TakesFeedback(Protocol):
    """What a ModelHandler is as well if its callers may judge its answers."""

    @property
    def feedback_is_shared(self) -> bool:
        """Whether no sibling knows of an answer that this process does not."""

    async def feedback(
        self, request: model_pb2.FeedbackRequest, caller: Principal
    ) -> model_pb2.FeedbackResponse:
        """Records what a caller says of an answer of its own. Raises Fault.

        NOT_FOUND where this process knows no such answer; a sibling of it may, unless they share.
        """
