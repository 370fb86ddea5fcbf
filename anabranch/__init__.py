"""Anabranch's client library: one model name, one contract, one stream of tokens.

    from anabranch import AsyncClient

    async with AsyncClient("router:50051", token=token) as client:
        async with client.stream(model="qwen", messages="Why is the sky blue?") as stream:
            async for chunk in stream:
                print(chunk.text, end="", flush=True)
        print(stream.usage, stream.receipt)

`Client` is the same for blocking code. Generated stubs are in `anabranch.v1`.
"""

from anabranch.client import AsyncClient
from anabranch.errors import (
    AccessDeniedError,
    AnabranchError,
    AuthenticationError,
    BackendLostError,
    DeadlineExceededError,
    InternalServiceError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    QuotaExceededError,
    RequestCancelledError,
    SessionLostError,
    SlowReaderError,
    UnavailableError,
    Violation,
    Work,
)
from anabranch.request import build_request
from anabranch.spans import RequestSpan, Tracing
from anabranch.streams import AnswerStream, BlockingAnswerStream
from anabranch.sync import Client
from anabranch.transcript import Chunk
from anabranch.types import (
    Answer,
    Attempt,
    Backend,
    Candidate,
    Choice,
    Embeddings,
    Explanation,
    Load,
    Model,
    ProviderAttempt,
    Receipt,
    RoutingPolicy,
    TokenCount,
    ToolCall,
    Usage,
)
from anabranch.vocabulary import (
    BackendState,
    Capability,
    FinishReason,
    OverflowReason,
    Priority,
    ReasoningEffort,
    Residency,
    Role,
    Tier,
    UsageSource,
    Verdict,
)

__all__ = [
    "AccessDeniedError",
    "AnabranchError",
    "Answer",
    "AnswerStream",
    "AsyncClient",
    "Attempt",
    "AuthenticationError",
    "Backend",
    "BackendLostError",
    "BackendState",
    "BlockingAnswerStream",
    "Candidate",
    "Capability",
    "Choice",
    "Chunk",
    "Client",
    "DeadlineExceededError",
    "Embeddings",
    "Explanation",
    "FinishReason",
    "InternalServiceError",
    "InvalidRequestError",
    "Load",
    "Model",
    "NotFoundError",
    "OverflowReason",
    "OverloadedError",
    "Priority",
    "ProviderAttempt",
    "QuotaExceededError",
    "ReasoningEffort",
    "Receipt",
    "RequestCancelledError",
    "RequestSpan",
    "Residency",
    "Role",
    "RoutingPolicy",
    "SessionLostError",
    "SlowReaderError",
    "Tier",
    "TokenCount",
    "ToolCall",
    "Tracing",
    "UnavailableError",
    "Usage",
    "UsageSource",
    "Verdict",
    "Violation",
    "Work",
    "build_request",
]
