"""Providers as data: profiles/*.yaml as checked values.

Knows what a provider is like, not how to talk to it: that is the dialect's part. The documents
are read in profile_files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class LongPromptPrices:
    """Prices of a whole request whose prompt has more than `over` tokens.

    `cache_write` None: as `input`, or as that of other prompts where it is higher.
    """

    over: int
    input: int
    cached_input: int
    output: int
    cache_write: int | None = None


@dataclass(frozen=True, slots=True)
class Prices:
    """Micro-USD per million tokens, with where and when they were read.

    `cache_write` is for prompt tokens that the provider stores in its cache; None: as `input`.
    """

    input: int
    cached_input: int
    output: int
    source: str
    as_of: str
    cache_write: int | None = None
    long_prompt: LongPromptPrices | None = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """How a sampling parameter reaches the provider.

    `minimum` and `maximum` bound its value; for lists (stop), `maximum` bounds their length.
    """

    rule: Literal["send", "drop", "refuse"]
    name: str = ""
    minimum: float | None = None
    maximum: float | None = None


REFUSED = Parameter("refuse")
TOOL_CHOICES = frozenset({"auto", "none", "required", "named"})


@dataclass(frozen=True, slots=True)
class Reasoning:
    """How a provider shows reasoning and is told how much of it is wanted.

    `effort` maps none, low, medium and high to what is merged into the request's body.
    """

    text_field: str = ""
    on_by_default: bool = False
    replay: bool = False
    ignores: frozenset[str] = frozenset()
    effort: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a provider goes on with an assistant turn: from the turn alone (no flag), or when a
    flag stands on its last message; perhaps at another path. `body` is merged into the body of a
    request that continues, and of no other."""

    flag: str
    path: str
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Paths:
    """Paths below the base URL; "{model}" stands for the model's name. "" where there is none.

    `stream` is for streamed answers. `count_result` says where in the answer of `count` the number
    stands, names joined by dots.
    """

    chat: str
    stream: str
    embed: str = ""
    count: str = ""
    count_result: str = ""


@dataclass(frozen=True, slots=True)
class UsageRules:
    """Where usage stands and what it counts. `reasoning` says whether the provider's completion
    count holds reasoning tokens ("included") or they are to be added ("added")."""

    ask: bool = False
    placement: Literal["chunk", "choice"] = "chunk"
    reasoning: Literal["included", "added"] = "included"


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """One of a provider's models. `prices` is None when they are not known, `max_output` 0.

    `effort` may hold "default": what is sent for a model that reasons unless told not to.
    """

    name: str
    context_length: int = 0
    max_output: int = 0
    capabilities: frozenset[str] = frozenset({"generate"})
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    streaming: bool = True
    effort: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prices: Prices | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """One provider.

    `headers` and `body` go with every request. `tool_choice` names the wishes about tools that the
    provider honours; "named" is that a certain one be called. `limits` says what a 429 speaks for:
    the account as a whole or one model of it. `drain_seconds` is how long a cancelled answer is
    still read, where the provider bills all of it anyway; 0: the connection is closed at once.
    """

    name: str
    dialect: str
    summary: str
    documentation: str
    base_url: str
    paths: Paths
    auth_scheme: Literal["bearer", "header", "aws-sigv4", "none"]
    auth_header: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    usage: UsageRules
    terminal: Literal["done", "finish"]
    content: Literal["text", "parts"]
    finish_reasons: Mapping[str, str]
    response_formats: frozenset[str]
    reasoning: Reasoning
    continuation: Continuation | None
    tool_choice: frozenset[str]
    limits: Literal["account", "model"]
    drain_seconds: float
    simulated: bool
    open_models: bool
    models: Mapping[str, ModelProfile]
