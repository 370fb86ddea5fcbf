"""Codecs between our contract and the providers' wire formats, one module family per format.

This file holds what every dialect offers. Codecs are pure: bytes and values in, values out;
sockets, timers and retries belong to the upstream client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.answer import Delta, Ending, ProviderFailure, ProviderUsage
from services.cloud_proxy.config import Route
from services.cloud_proxy.sse import SseEvent


@dataclass(frozen=True, slots=True)
class EncodedRequest:
    """A request in a provider's format. `dropped` names what the profile leaves out of it."""

    path: str
    body: bytes
    headers: Mapping[str, str]
    streaming: bool
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

    def event(self, event: SseEvent) -> list[Delta]:
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
        """What a response with a status other than 2xx means."""
