"""What stands for each value of one request: placeholders such as [EMAIL_1_x7q2].

The last part is random, one for a request, and is in none of its texts: what a model writes in this
form was ours. A placeholder is no entity itself, and none is the beginning of another.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from anabranch.v1 import generation_pb2 as pb

BRACKETS = ("[]", "<>", "{}")
"""In the order in which they are tried; a request's stop strings may rule some out."""

# No two letters or digits in a row: it is neither a word nor a number. No l, o, 0 or 1: models
# copy what they read.
_LETTERS = "bcdfghjkmnpqrstvwxz"
_DIGITS = "23456789"
_SHORTEST = 2
_DRAWS = 4


class Placeholders:
    """The placeholders of one request."""

    def __init__(self, nonce: str, brackets: str) -> None:
        self.opener = brackets[0]
        self._suffix = f"_{nonce}{brackets[1]}"
        self._by_value: dict[str, str] = {}
        self._values: dict[str, str] = {}
        self._counts: dict[pb.PiiKind, int] = {}
        self._sorted: list[str] | None = None
        self.longest = 0

    @property
    def counts(self) -> dict[pb.PiiKind, int]:
        """How many values of each kind there are."""
        return dict(self._counts)

    def of(self, kind: pb.PiiKind, value: str) -> str:
        """The value's placeholder, the same each time."""
        known = self._by_value.get(value)
        if known is not None:
            return known
        number = self._counts[kind] = self._counts.get(kind, 0) + 1
        name = pb.PiiKind.Name(kind).removeprefix("PII_KIND_")
        made = f"{self.opener}{name}_{number}{self._suffix}"
        self._by_value[value] = made
        self._values[made] = value
        self.longest = max(self.longest, len(made))
        self._sorted = None
        return made

    def items(self) -> Iterable[tuple[str, str]]:
        """Every placeholder and its value."""
        return self._values.items()

    def value(self, placeholder: str) -> str | None:
        """What it stands for; None when it stands for nothing."""
        return self._values.get(placeholder)

    def at(self, text: str, start: int) -> str:
        """The placeholder that stands at this place of a text; empty when none does."""
        end = text.find(self._suffix, start, start + self.longest)
        found = text[start : end + len(self._suffix)] if end >= 0 else ""
        return found if found in self._values else ""

    def may_begin(self, tail: str) -> bool:
        """Whether some placeholder begins with `tail` and goes on."""
        if self._sorted is None:
            self._sorted = sorted(self._values)
        after = bisect_left(self._sorted, tail)
        found = self._sorted[after] if after < len(self._sorted) else ""
        return found.startswith(tail) and len(found) > len(tail)

    def meets(self, text: str) -> bool:
        """Whether `text` lies in some placeholder, or reaches into or out of one.

        A stop string that does so would stop an answer at a placeholder, where it would not have
        stopped at the value.
        """
        return any(
            text in made or made in text or _overlap(text, made) or _overlap(made, text)
            for made in self._values
        )


def draw_nonce(texts: Sequence[str], random_bits: Callable[[int], int]) -> str:
    """Letters and digits by turns, in none of the texts. `random_bits(k)` gives k random bits.

    Four characters, and more where texts hold all that were drawn: one longer than a text ends it.
    """
    for pairs in itertools.count(_SHORTEST):
        for _ in range(_DRAWS):
            nonce = "".join([_pair(random_bits(16)) for _ in range(pairs)])
            if not any(nonce in text for text in texts):
                return nonce
    raise AssertionError("counting does not end")


def _pair(bits: int) -> str:
    bits, letter = divmod(bits, len(_LETTERS))
    return _LETTERS[letter] + _DIGITS[bits % len(_DIGITS)]


def _overlap(left: str, right: str) -> bool:
    """Whether an end of `left` is a beginning of `right`."""
    return any(left.endswith(right[:n]) for n in range(1, min(len(left), len(right))))
