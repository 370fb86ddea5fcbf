"""Who hears what a backend says of one request."""

from __future__ import annotations

from typing import Protocol

from services.chassis.errors import Fault


class Receiver(Protocol):
    """What a request hears from the backend it is on."""

    def on_chunk(self, raw: bytes, last: bool, tokens: int) -> None:
        """A serialised GenerateChunk."""

    def on_failure(self, fault: Fault) -> None:
        """The backend, or the session to it, failed the request."""


class _Nobody:
    """Hears what nobody wants to hear any more."""

    def on_chunk(self, raw: bytes, last: bool, tokens: int) -> None:
        """See Receiver."""

    def on_failure(self, fault: Fault) -> None:
        """See Receiver."""


NOBODY = _Nobody()
