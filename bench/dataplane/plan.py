"""What is measured: the paths a token can take, the loads, and how long each is looked at.

Values only. Times are in seconds, paces in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    HTTP = "http"
    """OpenAI's API with server-sent events; caller and engine are bare HTTP/1.1."""


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
    DIRECT_HTTP = "direct-http"
    LITELLM = "litellm"
    SMG = "smg"
    SMG_GRPC = "smg-grpc"

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
    Path.DIRECT_HTTP: (Form.HTTP, "", "direct, HTTP"),
    Path.LITELLM: (Form.HTTP, "litellm", "LiteLLM, HTTP"),
    Path.SMG: (Form.HTTP, "smg", "SMG, HTTP workers"),
    Path.SMG_GRPC: (Form.HTTP, "smg-grpc", "SMG, gRPC workers"),
}
_DIRECT = {
    Form.SESSION: Path.DIRECT_SESSION,
    Form.PLAIN: Path.DIRECT_PLAIN,
    Form.LEAN: Path.DIRECT_LEAN,
    Form.HTTP: Path.DIRECT_HTTP,
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
        if form is Form.HTTP:
            return self.streams
        return max(self.sessions, -(-self.streams // PLAIN_STREAMS_PER_CONNECTION))


CONCURRENCIES = (1, 16, 64, 256, 1000)

SHORT = Cell(256, 0, SHORT_TOKENS, sessions=1)
"""Short requests, 256 in flight: requests per second."""

ALONE = Cell(1, 0, SHORT_TOKENS)
"""One caller, one short answer after the other: what a proxy adds to the first token."""

SPREAD = Cell(64, 20, sessions=8)
"""The same streams over eight callers: a message carries an eighth of the tokens."""


def worth(cell: Cell, path: Path) -> bool:
    """Whether a whole run takes this path under this load.

    Left out is what would say nothing new for its time: lean ends where a step has one token, and
    gateways beyond what they carry on one worker.
    """
    if cell == SPREAD:
        return path.form in (Form.SESSION, Form.PLAIN) and path.proxy != "nginx"
    if cell == ALONE:
        return path.form is not Form.LEAN
    if path is Path.NGINX_LEAN:
        return 64 <= cell.streams <= 256
    if path.form is Form.LEAN:
        return cell.streams > 1
    if path is Path.LITELLM:
        return cell.streams <= 64
    return path.form is not Form.HTTP or cell.streams <= 256


MANY_STREAMS = 500
"""Streams from which a load takes longer to be under way."""

LONGER = 2.0
"""How much longer."""

SLOW = {Path.LITELLM: 4.0}
"""How much longer a proxy is looked at that takes seconds for an answer, so that starts and tokens
are in the look as they are in the load."""

BETWEEN_S = 0.35
"""Seconds that a look takes besides: connecting, ending, and a pause for the proxies to tidy up."""


@dataclass(frozen=True)
class Plan:
    """A whole run."""

    cells: tuple[Cell, ...]
    paths: tuple[Path, ...]
    rounds: int
    warm: float
    """Seconds of load before each look, not measured; more where many streams are to start. A look
    also waits until they have."""
    window: float
    """Seconds of each look; more where a proxy is slow."""
    all_of_them: bool = False
    """Every path under every load, also where it is not `worth` it: the reader has asked."""

    def takes(self, cell: Cell) -> tuple[Path, ...]:
        """The paths that are taken under a load."""
        return tuple(path for path in self.paths if self.all_of_them or worth(cell, path))

    def warm_of(self, cell: Cell, path: Path) -> float:
        """Seconds of load before a look."""
        longer = LONGER if cell.streams >= MANY_STREAMS else 1.0
        return self.warm * SLOW.get(path, 1.0) * longer

    def window_of(self, path: Path) -> float:
        """Seconds of a look."""
        return self.window * SLOW.get(path, 1.0)

    @property
    def looks(self) -> int:
        """How many there are."""
        return self.rounds * sum(len(self.takes(cell)) for cell in self.cells)

    @property
    def seconds(self) -> float:
        """How long it takes, about."""
        return self.rounds * sum(
            self.warm_of(cell, path) + self.window_of(path) + BETWEEN_S
            for cell in self.cells
            for path in self.takes(cell)
        )

    def without(self, absent: Iterable[Path]) -> Plan:
        """The plan without some paths."""
        gone = set(absent)
        return replace(self, paths=tuple(path for path in self.paths if path not in gone))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


FULL = Plan(
    cells=(
        *(Cell(streams, 20) for streams in CONCURRENCIES),
        SPREAD,
        *(Cell(streams, 0) for streams in CONCURRENCIES),
        SHORT,
        ALONE,
    ),
    paths=tuple(Path),
    rounds=5,
    warm=0.4,
    window=1.0,
)

QUICK = replace(
    FULL,
    cells=(Cell(16, 20), Cell(64, 20), Cell(256, 20), Cell(64, 0), SHORT, ALONE),
    rounds=1,
)
"""Two minutes: shows the order of things, proves nothing."""

SMOKE = replace(QUICK, cells=(Cell(2, 20, 8), Cell(2, 0, 8)), warm=0.2, window=0.4)
"""Seconds: shows that the harness works."""
