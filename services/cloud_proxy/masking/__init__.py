"""Hides personal data and keys in what goes to a provider, and puts them back into its answer.

This file holds what the parts share: kinds and the role of a detector. All of it is pure: texts
and randomness in, texts out. Patterns find what has a known form; nothing here is complete, and
nothing here is a defence against callers who hide what they send.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from anabranch.v1 import generation_pb2 as pb

KINDS: Mapping[str, pb.PiiKind] = {
    "email": pb.PII_KIND_EMAIL,
    "phone": pb.PII_KIND_PHONE,
    "card": pb.PII_KIND_CARD,
    "cn-id": pb.PII_KIND_CN_ID,
    "secret": pb.PII_KIND_SECRET,
}
"""By the names that settings and metrics use."""

NAMES: Mapping[int, str] = {kind: name for name, kind in KINDS.items()}

LONGEST: Mapping[int, int] = {
    pb.PII_KIND_EMAIL: 64 + 1 + 253,
    pb.PII_KIND_PHONE: 48,
    pb.PII_KIND_CARD: 23,
    pb.PII_KIND_CN_ID: 20,
    pb.PII_KIND_SECRET: 65_536,
}
"""Characters of an entity at most; so much of a text decides whether there is one."""


class Span(NamedTuple):
    """Where an entity lies in a text."""

    start: int
    end: int
    kind: pb.PiiKind


class Detector(Protocol):
    """Finds the entities of one kind. Where one is found may depend on what stands before it."""

    def __call__(self, text: str) -> Iterable[tuple[int, int]]:
        """Start and end of each, from left to right and apart from each other.

        `text` has been folded (folding.py). Takes time linear in its length, whatever it holds.
        """
