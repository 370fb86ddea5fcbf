"""One request on its way, as callers note it, and an order to make requests. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Flight:
    """Times are those of the machine's monotonic clock, the same for all processes; 0: not yet."""

    sent: float = 0.0
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    error: str = ""

    def to_json(self) -> list[Any]:
        """As JSON values: a list is shorter."""
        return [self.sent, self.first, self.last, self.tokens, self.error]


@dataclass(frozen=True)
class Order:
    """One look of one caller. Not logged: it may hold a token.

    Each of `waves` is sent at once, the next when all of it is answered. `form` is session or
    http, or in a process that holds vLLM itself, offline or async.
    """

    form: str
    model: str
    tokens: int
    waves: Sequence[Sequence[Sequence[int]]]
    """Prompts of token ids."""
    target: str = ""
    authorization: str = ""
    at: float = 0.0
    """When to begin, by the monotonic clock; in the past: at once."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"kind": "load"}


@dataclass(frozen=True)
class CancelOrder:
    """Streams to start, and to cancel: the first is the one that waits for a slot."""

    form: str
    model: str
    tokens: int
    prompts: Sequence[Sequence[int]]
    target: str = ""
    authorization: str = ""
    metrics: str = ""
    """host:port of the metrics page that tells of the KV cache, for http."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"kind": "cancel"}


@dataclass(frozen=True)
class Answered:
    """What a caller's process tells of an order."""

    flights: list[Flight] = field(default_factory=list)
    cpu_seconds: float = 0.0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"flights": [flight.to_json() for flight in self.flights]}


def answered(found: dict[str, Any]) -> Answered:
    """From what `to_json` made."""
    return Answered(
        [Flight(*values) for values in found["flights"]], found["cpu_seconds"], found["seconds"]
    )
