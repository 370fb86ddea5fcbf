"""The faults that the simulator can be told to have, and the queue of those still to come."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

KINDS = {
    "slow_headers": "wait `seconds` (1) before the response begins",
    "trickle": "wait `seconds` (0.05) before each piece of the stream",
    "stall": "go silent after `after` (2) pieces, connection open",
    "keepalive_only": "send comments every `seconds` (0.02) and never any output",
    "keepalive_stall": "send `after` (2) pieces, then comments only",
    "cut": "drop the connection after `after` (2) pieces",
    "garbage": "send bytes that are no event after `after` (2) pieces",
    "error_after_200": "send an error object after `after` (0) pieces of a 200 stream",
    "429": "refuse with 429; `retry_after`, `retry_after_ms`, `x_ms_retry_after_ms` as given",
    "5xx": "refuse with `status` (503); `retry_after`, `should_retry` as given",
    "4xx": "refuse with `status` (400), `code`, `message`, `param` as given",
    "hang": "accept the request and never answer",
    "no_done": "leave [DONE] out",
    "no_finish": "leave the finish reason out",
    "finish": "end with the finish reason `reason`",
    "wrong_content_type": "answer 200 with `type` (text/html)",
    "giant_line": "send one line of `bytes` (2,000,000)",
    "giant_response": "send `bytes` (2,000,000) in proper events",
    "duplicate_usage": "state the usage three times",
    "no_usage": "do not state the usage",
    "redirect": "answer 302 to `location`",
}


@dataclass
class Fault:
    """One kind of fault, for the next `count` requests."""

    kind: str
    count: int = 1
    params: dict[str, Any] = field(default_factory=dict)

    def number(self, name: str, default: float) -> float:
        """A numeric parameter."""
        value = self.params.get(name, default)
        return float(value)


class FaultQueue:
    """Faults still to happen, first come first served; one a request."""

    def __init__(self) -> None:
        self._waiting: deque[Fault] = deque()

    def add(self, document: dict[str, Any]) -> Fault:
        """Takes {kind, count, params}. Raises ValueError for an unknown kind."""
        kind = str(document.get("kind"))
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}")
        fault = Fault(kind, max(int(document.get("count", 1)), 1), document.get("params") or {})
        self._waiting.append(fault)
        return fault

    def take(self) -> Fault:
        """The fault of the next request; kind "" when it is to go well."""
        if not self._waiting:
            return Fault("")
        fault = self._waiting[0]
        fault.count -= 1
        if fault.count <= 0:
            self._waiting.popleft()
        return fault

    def clear(self) -> None:
        """Forgets what is still to come."""
        self._waiting.clear()

    def waiting(self) -> list[dict[str, Any]]:
        """What is still to come."""
        return [{"kind": f.kind, "count": f.count, "params": f.params} for f in self._waiting]
