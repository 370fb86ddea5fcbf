"""What a provider's answer means in our terms, whatever dialect it came in.

Values only: dialects produce them, the call turns them into chunks. No wire formats here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class ToolFragment:
    """New text of one tool call; `id` and `name` only on the call's first fragment."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """New output of one choice."""

    choice: int
    text: str = ""
    reasoning: str = ""
    tools: tuple[ToolFragment, ...] = ()


class Finish(StrEnum):
    """Why a choice ended well. Anything else a provider says is a failure."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


@dataclass(frozen=True, slots=True)
class ProviderUsage:
    """Tokens, in our terms whatever the provider's: `cached` ones (read from its cache) and
    `cache_written` ones are part of `prompt`, `reasoning` ones part of `completion`."""

    prompt: int
    cached: int
    completion: int
    reasoning: int
    cache_written: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a complete answer: a finish for each choice, usage when it was stated."""

    finishes: dict[int, Finish]
    usage: ProviderUsage | None
    # Reasoning that the provider wants back with the next turn, by choice.
    replay: dict[int, bytes]
    # The stop string that ended a choice, where the provider says which.
    matched_stop: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors in the order of their inputs, and usage when it was stated."""

    vectors: list[list[float]]
    usage: ProviderUsage | None


class FailureKind(StrEnum):
    """What went wrong at a provider; decides status, retry and key rotation."""

    UNREACHABLE = "unreachable"  # no connection was made
    BUSY = "busy"  # 429: this key, or this account, is limited
    FAILED = "failed"  # 5xx and their like
    TIMED_OUT = "timed_out"  # one of our own timers
    BROKEN = "broken"  # cut, garbage, no terminal marker, too large
    REFUSED_KEY = "refused_key"  # 401, 403
    NO_CREDIT = "no_credit"  # 402, exhausted quota
    REFUSED_REQUEST = "refused_request"  # 400, 413, 422
    TOO_LONG = "too_long"  # beyond the context length
    MISCONFIGURED = "misconfigured"  # 404, redirects: our operator's to fix


class ProviderFailure(Exception):
    """A provider did not answer as asked. `message` is ours or has been cleaned.

    `cause` says it in our words: a provider's may quote the prompt, which only its caller may read.
    """

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        *,
        http_status: int | None = None,
        retry_after: float | None = None,
        code: str = "",
        field: str = "",
        retry: bool | None = None,
        cause: str = "",
    ) -> None:
        super().__init__(cause or message)
        self.kind = kind
        self.message = message
        self.cause = cause or message
        self.http_status = http_status
        self.retry_after = retry_after
        self.code = code
        self.field = field
        # The provider's own word on repeating (x-should-retry); None when it said nothing.
        self.retry = retry
