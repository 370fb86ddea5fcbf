"""The faults that the simulator can be told to have, and the queue of those still to come."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from tools.provider_simulator.voices import Deviation, Refusal

KINDS = {
    "slow_headers": "wait `seconds` (1) before the response begins",
    "hang": "accept the request and never answer",
    "hang_after_headers": "send the headers of a response and nothing more",
    "trickle": "wait `seconds` (0.05) before each piece of output",
    "stall": "go silent after `after` (2) pieces, connection open",
    "keepalive_only": "send keep-alives every `seconds` (0.02) and never any output",
    "keepalive_stall": "send `after` (2) pieces, then keep-alives only",
    "cut": "drop the connection after `after` (2) pieces",
    "cut_mid_event": "drop it in the middle of the event after `after` (2) pieces",
    "garbage": "send bytes that are no event after `after` (2) pieces",
    "error_after_200": "send `error`, or the dialect's own, after `after` (0) pieces of a stream",
    "429": "refuse with 429, and with the hints below",
    "529": "refuse with 529, and with the hints below",
    "5xx": "refuse with `status` (503), and with the hints below",
    "4xx": "refuse with `status` (400), and with the hints below",
    "no_done": "leave the terminal marker of the dialect out",
    "no_finish": "leave the finish reason out",
    "finish": "end with the finish reason `reason`, a word of the dialect",
    "wrong_content_type": "answer 200 with `type` (text/html)",
    "giant_line": "send one line, or frame, of `bytes` (2,000,000)",
    "giant_response": "answer with `bytes` (2,000,000) of text in proper events",
    "duplicate_usage": "state the usage three times",
    "no_usage": "do not state the usage",
    "redirect": "answer 302 to `location`",
    "rate_limit_headers": "answer well, with the further `headers`",
}
"""Every kind, with its parameters and their defaults. Answers that do not stream have them too, as
far as they can be had without a stream."""

HINTS = """\
hints of 429, 529, 5xx and 4xx: `code`, `message` and `param` of the error; `retry_after` (seconds,
or any text), `retry_after_date` (a date so many seconds ahead), `retry_after_ms`,
`x_ms_retry_after_ms`, `should_retry`; `retry_info` (seconds, in the body of Gemini's errors)"""


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


def deviation(fault: Fault) -> Deviation:
    """How an answer with this fault deviates from a proper one."""
    if fault.kind == "no_done":
        return Deviation(terminal=False)
    if fault.kind == "no_finish":
        return Deviation(finish="")
    if fault.kind == "finish":
        return Deviation(finish=str(fault.params.get("reason", "unheard_of")))
    usages = {"duplicate_usage": 3, "no_usage": 0}.get(fault.kind, 1)
    return Deviation(usages=usages)


def refusal(fault: Fault, now: float) -> Refusal | None:
    """The error response that the fault is, if it is one. `now` in seconds since 1970."""
    default = {"429": 429, "529": 529, "5xx": 503, "4xx": 400}.get(fault.kind)
    if default is None:
        return None
    params = fault.params
    status = int(params.get("status", default))
    headers = {
        name.replace("_", "-"): str(params[name])
        for name in ("retry_after", "retry_after_ms", "x_ms_retry_after_ms")
        if name in params
    }
    if "retry_after_date" in params:
        headers["retry-after"] = formatdate(now + fault.number("retry_after_date", 0), usegmt=True)
    if "should_retry" in params:
        headers["x-should-retry"] = str(params["should_retry"]).lower()
    return Refusal(
        status,
        str(params.get("message", f"simulated {status}")),
        str(params.get("code", "")),
        str(params.get("param", "")),
        fault.number("retry_info", 0) if "retry_info" in params else None,
        headers,
    )
