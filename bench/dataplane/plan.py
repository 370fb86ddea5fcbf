"""What is measured: the paths a token can take, the loads, and how long each is looked at.

Values only. Times are in seconds, paces in milliseconds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

PLAIN_STREAMS_PER_CONNECTION = 100
"""What our servers allow, so every plain path gets one connection for each hundred streams."""

STREAMS_PER_SESSION = 256
"""Streams that share a session, unless a cell says otherwise."""

STEADY_TOKENS = 256
"""Length of an answer where the cost of a token is measured."""

SHORT_TOKENS = 16
"""Length of an answer where the cost of a request is measured."""


class Form(StrEnum):
    """How requests travel."""

    SESSION = "session"
    PLAIN = "plain"
    """StreamGenerate; caller and engine are grpc.aio."""
    LEAN = "lean"
    """StreamGenerate; caller and engine are bare HTTP/2, leaner than any proxy."""


class Path(StrEnum):
    """What stands between the caller and the engine."""

    DIRECT_SESSION = "direct-session"
    DIRECT_PLAIN = "direct-plain"
    ROUTER_SESSION = "router-session"
    ROUTER_PLAIN = "router-plain"
    ENVOY = "envoy"
    NGINX = "nginx"
    DIRECT_LEAN = "direct-lean"
    ENVOY_LEAN = "envoy-lean"
    NGINX_LEAN = "nginx-lean"

    @property
    def form(self) -> Form:
        """The form in which this path's requests travel."""
        return _FACTS[self][0]

    @property
    def proxy(self) -> str:
        """The process in between; empty for none."""
        return _FACTS[self][1]

    @property
    def label(self) -> str:
        """For people."""
        return _FACTS[self][2]

    @property
    def direct(self) -> Path:
        """The same form without anything in between."""
        return _DIRECT[self.form]


_FACTS = {
    Path.DIRECT_SESSION: (Form.SESSION, "", "direct, Session"),
    Path.DIRECT_PLAIN: (Form.PLAIN, "", "direct, StreamGenerate"),
    Path.ROUTER_SESSION: (Form.SESSION, "router", "Anabranch router, Session"),
    Path.ROUTER_PLAIN: (Form.PLAIN, "router", "Anabranch router, StreamGenerate"),
    Path.ENVOY: (Form.PLAIN, "envoy", "Envoy, StreamGenerate"),
    Path.NGINX: (Form.PLAIN, "nginx", "nginx, StreamGenerate"),
    Path.DIRECT_LEAN: (Form.LEAN, "", "direct, StreamGenerate, lean ends"),
    Path.ENVOY_LEAN: (Form.LEAN, "envoy", "Envoy, StreamGenerate, lean ends"),
    Path.NGINX_LEAN: (Form.LEAN, "nginx", "nginx, StreamGenerate, lean ends"),
}
_DIRECT = {
    Form.SESSION: Path.DIRECT_SESSION,
    Form.PLAIN: Path.DIRECT_PLAIN,
    Form.LEAN: Path.DIRECT_LEAN,
}


@dataclass(frozen=True)
class Cell:
    """One load: so many answers at once, each started again when it ends.

    `pace_ms` is the time of an engine step, in which every running answer gets one token; 0 means
    that the engine takes no time.
    """

    streams: int
    pace_ms: int
    tokens: int = STEADY_TOKENS
    sessions: int = 0
    """0: one for each STREAMS_PER_SESSION streams."""

    @property
    def name(self) -> str:
        """Identifies the cell in files."""
        pace = f"{self.pace_ms}ms" if self.pace_ms else "unpaced"
        many = f"-over{self.sessions}" if self.sessions else ""
        return f"{pace}-{self.streams}x{self.tokens}{many}"

    @property
    def label(self) -> str:
        """For people."""
        pace = f"{self.pace_ms} ms a token" if self.pace_ms else "unpaced"
        many = f" over {self.sessions} sessions" if self.sessions else ""
        return f"{self.streams:,} streams{many} of {self.tokens} tokens, {pace}"

    def connections(self, form: Form) -> int:
        """Sessions, or connections of plain RPCs."""
        if form is Form.SESSION:
            return self.sessions or -(-self.streams // STREAMS_PER_SESSION)
        return max(self.sessions, -(-self.streams // PLAIN_STREAMS_PER_CONNECTION))


@dataclass(frozen=True)
class Plan:
    """A whole run."""

    cells: tuple[Cell, ...]
    paths: tuple[Path, ...]
    rounds: int
    warm: float
    """Seconds of load before each look, not measured."""
    window: float
    """Seconds of each look."""

    @property
    def seconds(self) -> float:
        """How long it takes, about."""
        return len(self.cells) * len(self.paths) * self.rounds * (self.warm + self.window + 0.5)

    def without(self, absent: set[Path]) -> Plan:
        """The plan without some paths."""
        return replace(self, paths=tuple(p for p in self.paths if p not in absent))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


CONCURRENCIES = (1, 16, 64, 256, 1000)

SHORT = Cell(256, 0, SHORT_TOKENS, sessions=1)
"""Short requests, 256 in flight: requests per second."""

SPREAD = Cell(64, 20, sessions=8)
"""The same streams over eight callers: a message carries an eighth of the tokens."""

FULL = Plan(
    cells=(
        *(Cell(streams, 20) for streams in CONCURRENCIES),
        SPREAD,
        *(Cell(streams, 0) for streams in CONCURRENCIES),
        SHORT,
    ),
    paths=tuple(Path),
    rounds=5,
    warm=0.8,
    window=2.0,
)

QUICK = replace(
    FULL,
    cells=(Cell(16, 20), Cell(64, 20), Cell(256, 20), Cell(64, 0), SHORT),
    rounds=1,
    warm=0.6,
    window=1.2,
)
"""Two minutes: shows the order of things, proves nothing."""

SMOKE = replace(QUICK, cells=(Cell(2, 20, 8), Cell(2, 0, 8)), warm=0.2, window=0.4)
"""Seconds: shows that the harness works."""
