"""Who hears what a backend says of one request, and how one that trips over it ends alone."""

from __future__ import annotations

import logging
from typing import Protocol

from services.chassis.errors import Fault, internal

_log = logging.getLogger(__name__)


class Receiver(Protocol):
    """What a request hears from the backend it is on."""

    def on_chunk(self, raw: bytes, last: bool, tokens: int) -> None:
        """A serialised GenerateChunk."""

    def on_failure(self, fault: Fault) -> None:
        """The backend, or the session to it, failed the request."""

    def on_bug(self, fault: Fault) -> None:
        """Something of ours went wrong while it was told."""


class _Nobody:
    """Hears what nobody wants to hear any more."""

    def on_chunk(self, raw: bytes, last: bool, tokens: int) -> None:
        """See Receiver."""

    def on_failure(self, fault: Fault) -> None:
        """See Receiver."""

    def on_bug(self, fault: Fault) -> None:
        """See Receiver."""


class Fallible(Protocol):
    """A request that can be ended for a bug."""

    def on_bug(self, fault: Fault) -> None:
        """See Receiver."""


def end_for_bug(request: Fallible, exc: Exception) -> None:
    """Ends the one request in which something went wrong.

    Whoever calls serves many at once, which go on: a session, a line.
    """
    try:
        request.on_bug(internal(exc))
    except Exception:  # noqa: BLE001 - as above
        _log.exception("a request with a bug could not be ended")


NOBODY = _Nobody()
