"""How a Gemini turn was laid out and which of its parts are signed, as opaque state.

Gemini signs parts of its turns (thoughtSignature) and wants each signature back on the very part
that it came with, unmerged. The contract keeps a turn as text and calls, so the state remembers
the parts: what comes out of an answer here is read back here with the next request.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from services.chassis.errors import Violation, invalid
from services.cloud_proxy.dialects.fields import broken

_MOST_PARTS = 4096
# What Google documents for turns that another model made: their calls have no signature, and
# Gemini 3 and later refuse the first call of a turn without one.
FOREIGN_CALL = "skip_thought_signature_validator"


class SignedPart(NamedTuple):
    """One part of a turn. `text` is a length in code points, `call` a position among the turn's
    calls, `thought` the text of a thought; the other two of them are None."""

    text: int | None = None
    call: int | None = None
    thought: str | None = None
    signature: str = ""


class TurnLayout:
    """The parts of one choice while they arrive."""

    __slots__ = ("_parts", "_signed")

    def __init__(self) -> None:
        self._parts: list[SignedPart] = []
        self._signed = False

    def text(self, length: int, signature: str) -> None:
        """Text of the answer. What is not signed joins what is not signed."""
        last = self._parts[-1] if self._parts else None
        if signature:
            self._add(SignedPart(text=length, signature=signature))
        elif last is not None and last.text is not None and not last.signature:
            self._parts[-1] = SignedPart(text=last.text + length)
        elif length:
            self._add(SignedPart(text=length))

    def thought(self, text: str, signature: str) -> None:
        """A thought; one that is not signed is not wanted back."""
        if signature:
            self._add(SignedPart(thought=text, signature=signature))

    def call(self, index: int, signature: str) -> None:
        """A call."""
        self._add(SignedPart(call=index, signature=signature))

    def state(self) -> bytes:
        """The state to replay; b"" when nothing was signed."""
        if not self._signed:
            return b""
        parts = [
            {name: value for name, value in part._asdict().items() if value not in (None, "")}
            for part in self._parts
        ]
        return orjson.dumps({"version": 1, "parts": parts})

    def _add(self, part: SignedPart) -> None:
        if len(self._parts) >= _MOST_PARTS:
            raise broken("the provider sent more parts than are sensible")
        self._parts.append(part)
        self._signed = self._signed or bool(part.signature)


def read_state(data: bytes, at: str) -> list[SignedPart]:
    """The parts that a state speaks of. Raises Fault INVALID_REQUEST for what is no state."""
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        document = None
    entries = document.get("parts") if isinstance(document, dict) else None
    if not isinstance(entries, list) or document.get("version") != 1 or len(entries) > _MOST_PARTS:
        raise _unknown_state(at)
    return [_read_part(entry, at) for entry in entries]


def _read_part(entry: Any, at: str) -> SignedPart:
    if not isinstance(entry, dict) or not entry.keys() <= set(SignedPart._fields):
        raise _unknown_state(at)
    part = SignedPart(**entry)
    numbers = [n for n in (part.text, part.call) if n is not None]
    kinds = len(numbers) + (part.thought is not None)
    proper = (
        kinds == 1
        and all(type(n) is int and n >= 0 for n in numbers)
        and isinstance(part.thought, str | None)
        and isinstance(part.signature, str)
    )
    if not proper:
        raise _unknown_state(at)
    return part


def _unknown_state(at: str) -> Exception:
    return invalid([Violation(at, "is not a state that this provider's answers came with")])


def laid_out(
    parts: list[SignedPart], text: str, calls: list[dict[str, Any]], at: str
) -> list[dict[str, Any]]:
    """The turn's parts as they were, signatures in place. Raises Fault INVALID_REQUEST."""
    named = [part.call for part in parts if part.call is not None]
    if len(set(named)) != len(named) or any(n >= len(calls) for n in named):
        raise invalid([Violation(at, "speaks of calls that are not in this turn")])
    found: list[dict[str, Any]] = []
    position = 0
    for part in _realigned(parts, len(text)):
        if part.call is not None:
            piece = calls[part.call]
        elif part.thought is not None:
            piece = {"text": part.thought, "thought": True}
        else:
            end = position + (part.text or 0)
            piece = {"text": text[position:end]}
            position = end
            if not piece["text"] and not part.signature:
                continue
        found.append({**piece, "thoughtSignature": part.signature} if part.signature else piece)
    return [*found, *(call for n, call in enumerate(calls) if n not in named)]


def _realigned(parts: list[SignedPart], length: int) -> list[SignedPart]:
    """The parts for a text of this length.

    Where the text is no longer the one that was signed, it goes as one part before them, and each
    signature of it on an empty text part, a form that Gemini uses itself.
    """
    if sum(part.text or 0 for part in parts) == length:
        return parts
    kept = [
        part if part.text is None else SignedPart(text=0, signature=part.signature)
        for part in parts
        if part.text is None or part.signature
    ]
    first = next((n for n, part in enumerate(kept) if part.thought is None), len(kept))
    return [*kept[:first], SignedPart(text=length), *kept[first:]]
