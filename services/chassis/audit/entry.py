"""One entry of an audit trail: its canonical bytes, its hash, and its place in the chain.

    hash = SHA-256(hash of the previous entry || canonical JSON of the entry)

The first entry follows 32 zero bytes. Pure: no clock, no file, no randomness. Anyone who places
entries under a lock of their own (a database transaction) calls `chain` there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Scalar: TypeAlias = str | int | float | bool | None

GENESIS = bytes(32)
"""What the first entry follows."""

CONTENT = "content"
"""The detail that holds sealed prompts and answers; the only long one."""

CONTENT_FIELD = "audit.content"
"""What sealed prompts and answers are bound to, beside their tenant."""

LONGEST_LINE = 256 * 1024
"""Bytes. No entry that `chain` places makes a longer line."""

_LONGEST = {"action": 64, "client_id": 256, "tenant": 256, "target": 512, "peer": 128}
_LONGEST_NAME = 64
_LONGEST_VALUE = 2048
_DETAILS_BYTES = 16 * 1024
_CONTENT_BYTES = 160 * 1024
_LARGEST_NUMBER = 2**63 - 1
_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Act:
    """What somebody did, not yet placed in a trail.

    `peer` is the address that it came from. `details` hold no prompt and no credential; what is
    too long is cut when the act is placed.
    """

    action: str
    client_id: str = ""
    tenant: str = ""
    target: str = ""
    succeeded: bool = True
    peer: str = ""
    details: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """An act in its place. `sequence` counts from 1 without gaps; `time_us` is in microseconds
    since the epoch of Unix."""

    sequence: int
    time_us: int
    trail: str
    act: Act

    @property
    def time(self) -> float:
        """In seconds since the epoch of Unix."""
        return self.time_us / _US

    def canonical(self) -> bytes:
        """Sorted keys, no white space, everything outside printable ASCII escaped: one line that
        no text in it can break, and that steers no terminal."""
        return _json(
            {
                "action": self.act.action,
                "client_id": self.act.client_id,
                "details": dict(self.act.details),
                "peer": self.act.peer,
                "sequence": self.sequence,
                "succeeded": self.act.succeeded,
                "target": self.act.target,
                "tenant": self.act.tenant,
                "time_us": self.time_us,
                "trail": self.trail,
            }
        )

    def hash_after(self, previous: bytes) -> bytes:
        """The hash that this entry has when it follows the entry with the hash `previous`."""
        return hashlib.sha256(previous + self.canonical()).digest()


@dataclass(frozen=True, slots=True)
class ChainedEntry:
    """An entry with its hash, which vouches for everything before it."""

    entry: Entry
    hash: bytes

    def line(self) -> bytes:
        """How it is kept: one line of JSON, its end included."""
        return b'{"entry":%s,"hash":"%s"}\n' % (
            self.entry.canonical(),
            self.hash.hex().encode(),
        )


def chain(previous: ChainedEntry | None, act: Act, *, trail: str, time: float) -> ChainedEntry:
    """Places an act behind `previous`, or as the first of its trail; cuts what is too long.

    `time` is in seconds since the epoch of Unix. Raises ValueError when `previous` is of another
    trail.
    """
    if previous is not None and previous.entry.trail != trail:
        raise ValueError(f"an entry of {trail!r} cannot follow one of {previous.entry.trail!r}")
    sequence = 1 if previous is None else previous.entry.sequence + 1
    entry = Entry(sequence, round(time * _US), trail, bounded(act))
    return ChainedEntry(entry, entry.hash_after(GENESIS if previous is None else previous.hash))


def parse_line(line: bytes) -> ChainedEntry:
    """Reads what `ChainedEntry.line` wrote. Raises ValueError for anything else, be it only
    another spelling of the same: each entry has one form."""
    if len(line) > LONGEST_LINE:
        raise ValueError(f"the line has {len(line)} bytes")
    try:
        value = json.loads(line, object_pairs_hook=_no_repetition)
        raw = value["entry"]
        act = Act(
            action=_text(raw["action"]),
            client_id=_text(raw["client_id"]),
            tenant=_text(raw["tenant"]),
            target=_text(raw["target"]),
            succeeded=raw["succeeded"] is True,
            peer=_text(raw["peer"]),
            details={_text(name): _scalar(part) for name, part in raw["details"].items()},
        )
        entry = Entry(_whole(raw["sequence"]), _whole(raw["time_us"]), _text(raw["trail"]), act)
        chained = ChainedEntry(entry, bytes.fromhex(_text(value["hash"])))
        again = chained.line()
    except (KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ValueError("the line is no entry of an audit trail") from exc
    if again != line:
        raise ValueError("the line is not as a trail writes it")
    return chained


def bounded(act: Act) -> Act:
    """The act with everything in it cut to what an entry may hold.

    Details that do not fit, in the order of their names, are left out and counted in `omitted`.
    """
    details: dict[str, Scalar] = {}
    used = omitted = 0
    for name in sorted(act.details):
        value = _bounded_value(act.details[name], name)
        size = len(_json({name[:_LONGEST_NAME]: value}))
        room = _CONTENT_BYTES if name == CONTENT else _DETAILS_BYTES - used
        if size > room:
            omitted += 1
            continue
        if name != CONTENT:
            used += size
        details[_clean(name, _LONGEST_NAME)] = value
    if omitted:
        details["omitted"] = omitted
    texts = {name: _clean(getattr(act, name), longest) for name, longest in _LONGEST.items()}
    return Act(succeeded=bool(act.succeeded), details=details, **texts)


def _bounded_value(value: Scalar, name: str) -> Scalar:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= _LARGEST_NUMBER else str(value)[:_LONGEST_NAME]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    # A sealed text that was cut could never be opened: it is left out whole.
    return _clean(str(value), _CONTENT_BYTES if name == CONTENT else _LONGEST_VALUE)


def _clean(text: str, longest: int) -> str:
    # Lone surrogates are no characters, and no database takes them.
    text = text[: longest + 1].encode("utf-8", "replace").decode()
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _no_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the line names something twice")
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _scalar(value: Any) -> Scalar:
    if value is not None and not isinstance(value, str | int | float):
        raise TypeError("not a scalar")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("not a whole number")
    return value
