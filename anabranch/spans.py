"""What the client tells about its requests to whoever traces them. The role only.

Give `AsyncClient(tracing=…)` something of this kind: `anabranch.tracing.OpenTelemetry` for
OpenTelemetry, or your own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from anabranch.errors import AnabranchError

Attributes = Mapping[str, str | int | float | bool]


class RequestSpan(Protocol):
    """One request, from its call to its end. Called on the event loop; must not block."""

    @property
    def traceparent(self) -> str:
        """The W3C trace context that the service is told; empty for none."""

    def event(self, name: str, attributes: Attributes) -> None:
        """Something happened to it: it was sent again, its first output came."""

    def end(self, error: AnabranchError | None, attributes: Attributes) -> None:
        """It is over, once: well, with an error, or cancelled by its caller."""


class Tracing(Protocol):
    """Begins spans."""

    def begin(self, name: str, attributes: Attributes) -> RequestSpan:
        """A request is made by the code that runs now, whose own span is its parent."""
