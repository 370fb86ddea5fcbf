"""Durations and times as people type them, and as they are shown. Pure; the clock is passed in."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?")
_LONGEST = 100 * 366 * 86_400


def parse_duration(text: str) -> int:
    """Whole seconds of 90s, 5m, 12h, 30d or, largest unit first, 1h30m.

    Raises ValueError for anything else, for nothing at all and for more than a century.
    """
    found = _DURATION.fullmatch(text.strip().lower())
    if not found or not any(found.groups()):
        raise ValueError(f"{text!r} is no duration: write 90s, 5m, 12h, 30d or 1h30m")
    amounts = zip(found.groups(), ("d", "h", "m", "s"), strict=True)
    seconds = sum(int(amount) * _SECONDS[unit] for amount, unit in amounts if amount)
    if not 0 < seconds <= _LONGEST:
        raise ValueError(f"{text!r} is no duration that can be meant")
    return seconds


def parse_time(text: str, now: Callable[[], datetime]) -> datetime:
    """A moment: a duration before now, or ISO 8601, in UTC where it names no zone.

    Raises ValueError for anything else.
    """
    try:
        return now() - timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError):
        pass
    try:
        # UTC and not the zone of the machine: what is shown is in UTC as well.
        moment = datetime.fromisoformat(text.strip())
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time: write how long ago (90s, 5m, 12h, 30d) or ISO 8601, such as "
            "2026-01-31 or 2026-01-31T08:00:00Z"
        ) from None


def show_duration(seconds: float) -> str:
    """The shortest form that parse_duration reads back: 5m, 90s, 1h30m; fractions as 0.5s."""
    rest = int(seconds)
    if rest != seconds or not rest:
        return f"{seconds:g}s"
    text = ""
    for unit in ("d", "h", "m", "s"):
        amount, rest = divmod(rest, _SECONDS[unit])
        text += f"{amount}{unit}" if amount else ""
    # 90s is what was typed, and 1m30s is not shorter.
    return f"{int(seconds)}s" if seconds < 120 and seconds % 60 else text


def show_age(seconds: float) -> str:
    """An age in its largest unit, rounded down: 3d, 5h, 12m, 40s."""
    for unit in ("d", "h", "m"):
        if seconds >= _SECONDS[unit]:
            return f"{int(seconds // _SECONDS[unit])}{unit}"
    return f"{max(0, int(seconds))}s"


def duration(seconds: int) -> Duration:
    """Seconds on the wire."""
    return Duration(seconds=seconds)


def timestamp(moment: datetime) -> Timestamp:
    """A moment on the wire."""
    proto = Timestamp()
    proto.FromDatetime(moment)
    return proto


def iso(proto: Timestamp) -> str:
    """A moment of the wire as ISO 8601 in UTC, with a fraction only where it has one."""
    return str(proto.ToJsonString())
