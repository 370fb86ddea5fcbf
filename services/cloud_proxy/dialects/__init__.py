"""Codecs between our contract and the providers' wire formats, one module family per format.

This file holds what every dialect offers. Codecs are pure: bytes and values in, values out;
sockets, timers and retries belong to the upstream client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.cloud_proxy.answer import Delta, Embedded, Ending, ProviderFailure, ProviderUsage
from services.cloud_proxy.config import Route
from services.cloud_proxy.streams import StreamEvent


class Framing(StrEnum):
    """How a streamed answer is cut into events: the media type that announces it."""

    SSE = "text/event-stream"
    NDJSON = "application/x-ndjson"
    AWS_EVENT_STREAM = "application/vnd.amazon.eventstream"


@dataclass(frozen=True, slots=True)
class EncodedRequest:
    """A request in a provider's format. `path` is below the route's base URL, percent-encoded,
    and may hold a query. `framing` is None for an answer that comes whole. `dropped` names the
    parameters that the profile leaves out of it."""

    path: str
    body: bytes
    headers: Mapping[str, str]
    framing: Framing | None
    dropped: tuple[str, ...] = ()


class AnswerDecoder(Protocol):
    """Reads one answer; keeps what it needs between events.

    Every method raises ProviderFailure for what is not a proper answer.
    """

    @property
    def done(self) -> bool:
        """Whether the stream's terminal marker was seen; what follows it says nothing."""

    @property
    def usage(self) -> ProviderUsage | None:
        """Usage as stated so far; most providers state it at the end only."""

    def event(self, event: StreamEvent) -> list[Delta]:
        """What one event of a stream says. Empty for keep-alives and bookkeeping."""

    def whole(self, body: bytes) -> list[Delta]:
        """What an answer that did not stream says."""

    def ending(self) -> Ending:
        """Called at the end of the stream. Raises when the answer is not complete."""


class Dialect(Protocol):
    """One wire format."""

    def encode_request(
        self, request: pb.GenerateRequest, route: Route, *, max_tokens: int | None = None
    ) -> EncodedRequest:
        """The request as the provider wants it; `max_tokens` overrides the request's own.

        Raises Fault UNSUPPORTED for what the provider cannot do, and INVALID_REQUEST.
        """

    def decoder(self, request: pb.GenerateRequest, route: Route) -> AnswerDecoder:
        """A fresh decoder for the answer to `request`."""

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFailure:
        """What a response with a status other than 200 means."""

    def encode_embed(self, request: model_pb2.EmbedRequest, route: Route) -> EncodedRequest:
        """A request for vectors. Raises Fault UNSUPPORTED."""

    def decode_embed(self, request: model_pb2.EmbedRequest, route: Route, body: bytes) -> Embedded:
        """The vectors, one for each input. Raises ProviderFailure."""

    def encode_count(self, request: pb.GenerateRequest, route: Route) -> EncodedRequest | None:
        """A request for the size of a prompt; None where the provider has no endpoint for it.

        Raises Fault UNSUPPORTED as `encode_request` does.
        """

    def decode_count(self, route: Route, body: bytes) -> int:
        """The tokens of the prompt. Raises ProviderFailure."""
