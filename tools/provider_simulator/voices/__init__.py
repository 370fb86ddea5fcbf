"""The dialects that the simulator speaks, one file each; this one says what each must offer.

A voice reads a request into the common form that `answers` understands, and renders what is to be
said as bytes. It knows no sockets, no timers and no faults, only in what form they would come.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from tools.provider_simulator.answers import Reply


class Operation(StrEnum):
    """What is asked for."""

    CHAT = "chat"
    EMBED = "embed"
    COUNT = "count"


@dataclass(frozen=True)
class Endpoint:
    """A path, as aiohttp's router reads it, and what a POST to it asks for. `{model}` in it is
    the model's name; `streams` tells a path for streamed answers alone."""

    path: str
    operation: Operation
    streams: bool = False


@dataclass(frozen=True)
class Received:
    """A request as it came: its JSON document, and what stands outside of it."""

    operation: Operation
    document: dict[str, Any]
    headers: Mapping[str, str]
    query: Mapping[str, str]
    model: str = ""
    streams: bool = False


@dataclass(frozen=True)
class Asked:
    """A request in the common form.

    `body` is what `answers.reply` takes. For EMBED, `inputs` are the texts and `dimension` the
    wished length of their vectors.
    """

    model: str
    stream: bool
    document: dict[str, Any]
    body: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    dimension: int | None = None


@dataclass(frozen=True)
class Piece:
    """Bytes of a stream that belong together: one event. `output` tells what a model said from
    bookkeeping: faults count, and delays precede, pieces of output."""

    data: bytes
    output: bool = False


@dataclass(frozen=True)
class Deviation:
    """What is left out of an answer, or said otherwise.

    `finish` replaces the finish reason, by a word of the dialect; "" leaves it out.
    `usages` is how often usage is stated, `terminal` whether the stream has its last marker.
    """

    terminal: bool = True
    finish: str | None = None
    usages: int = 1


PROPER = Deviation()


@dataclass(frozen=True)
class Refusal:
    """An error response, before a dialect gives it its form. `code` "" leaves that to the dialect;
    `retry_in` in seconds is for dialects that say in the body when to come back."""

    status: int
    message: str
    code: str = ""
    param: str = ""
    retry_in: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Voice(Protocol):
    """One dialect."""

    @property
    def name(self) -> str:
        """As profiles and recordings call it."""

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where it listens."""

    @property
    def media_type(self) -> str:
        """Of a stream."""

    @property
    def greeting(self) -> bytes:
        """What a stream begins with before it says anything; may be empty."""

    @property
    def keepalive(self) -> bytes:
        """What is sent while there is nothing to say; empty where nothing is."""

    @property
    def garbage(self) -> bytes:
        """What is no event of the dialect."""

    def read(self, received: Received) -> Asked:
        """The request in the common form.

        Raises ValueError, KeyError, TypeError or AttributeError for one that makes no sense.
        """

    def stream(self, asked: Asked, reply: Reply, deviation: Deviation) -> Iterator[Piece]:
        """The answer as a stream."""

    def whole(self, asked: Asked, reply: Reply, deviation: Deviation) -> dict[str, Any]:
        """The answer as a document."""

    def embedded(self, asked: Asked, vectors: list[list[float]], tokens: int) -> dict[str, Any]:
        """Vectors, one for each input."""

    def counted(self, tokens: int) -> dict[str, Any]:
        """The size of a prompt. Raises ValueError where the dialect has no such answer."""

    def refused(self, refusal: Refusal) -> tuple[dict[str, Any], dict[str, str]]:
        """The body and the further headers of an error response."""

    def failure(self, params: Mapping[str, Any]) -> bytes:
        """An error inside a stream: `error` of `params`, else one of the dialect's own."""

    def giant(self, size: int) -> bytes:
        """One line, or frame, of about `size` bytes."""
