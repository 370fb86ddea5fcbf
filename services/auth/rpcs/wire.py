"""What the RPCs share: the caller's act, pages, and times on the wire."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.auth.core.clients import Problem
from services.chassis.audit.entry import Act, Scalar
from services.chassis.principal import current_address, current_principal

_PAGE = 100
_LARGEST_PAGE = 1000
_LONGEST_PAGE_TOKEN = 1024


def peer() -> str:
    """The caller's address; empty for a sibling process."""
    address = current_address()
    return "" if address is None else str(address)


def act(action: str, target: str = "", **details: Scalar | Sequence[str]) -> Act:
    """What the caller is about to do. Lists among the details are joined, empty ones left out."""
    principal = current_principal()
    flat: dict[str, Scalar] = {}
    for name, value in details.items():
        if isinstance(value, str | int | float | bool) or value is None:
            flat[name] = value
        elif value:
            flat[name] = " ".join(value)
    return Act(
        action,
        client_id=principal.client_id,
        tenant=principal.tenant,
        target=target,
        peer=peer(),
        details=flat,
    )


def page_of(size: int, token: str, problems: list[Problem]) -> tuple[str, int]:
    """The key after which to go on and the size of the page; their problems join the others."""
    if size < 0:
        problems.append(Problem("page_size", "must not be negative"))
    after = _read_page_token(token)
    if after is None:
        problems.append(Problem("page_token", "must be a next_page_token of this RPC"))
    return after or "", min(size or _PAGE, _LARGEST_PAGE)


def page_token(last: str) -> str:
    """The token with which to go on after this key."""
    return base64.urlsafe_b64encode(last.encode()).decode()


def _read_page_token(token: str) -> str | None:
    """The key in a token; None for a text that we did not make."""
    if len(token) > _LONGEST_PAGE_TOKEN:
        return None
    try:
        key = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    return key if key.isprintable() and key.isascii() else None


def nanoseconds(duration: Duration) -> int:
    return int(duration.seconds) * 1_000_000_000 + int(duration.nanos)


def whole_seconds(duration: Duration) -> int:
    """Its seconds, with those that are written as nanoseconds."""
    return nanoseconds(duration) // 1_000_000_000


def duration(seconds: float) -> Duration:
    found = Duration()
    found.FromNanoseconds(round(seconds * 1e9))
    return found


def timestamp(unix_seconds: float) -> Timestamp:
    found = Timestamp()
    found.FromNanoseconds(round(unix_seconds * 1e9))
    return found


def unix_seconds(field: str, moment: Timestamp, problems: list[Problem]) -> float:
    """A moment in unix seconds; the problem of one that no calendar has joins the others."""
    try:
        return float(moment.ToNanoseconds() / 1e9)
    except ValueError:
        problems.append(Problem(field, "must be a time from the year 1 to 9999"))
        return 0.0
