"""Finds all entities of some kinds in a text, and decides where they overlap.

Longest first, then leftmost, then by kind; what lay beneath an entity is looked at again without
it. The result depends on nothing but the text and the kinds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.masking import Detector, Span, credentials, email_addresses, phone_numbers
from services.cloud_proxy.masking.checked_numbers import find_cards, find_resident_ids
from services.cloud_proxy.masking.folding import GAP, folded

DETECTORS: Mapping[pb.PiiKind, Detector] = {
    pb.PII_KIND_EMAIL: email_addresses.find,
    pb.PII_KIND_PHONE: phone_numbers.find,
    pb.PII_KIND_CARD: find_cards,
    pb.PII_KIND_CN_ID: find_resident_ids,
    pb.PII_KIND_SECRET: credentials.find,
}

MOST_ENTITIES = 10_000
"""In one text. A text of nothing else would hold up everybody's answers while it is looked at."""


class TooManyEntities(Exception):
    """A text holds more than MOST_ENTITIES."""


# What is found only once another entity is gone is rare, and rarer each time.
_MOST_ROUNDS = 4


def find(text: str, kinds: Collection[pb.PiiKind]) -> list[Span]:
    """The entities of these kinds in a text, from left to right, none overlapping another.

    Raises TooManyEntities.
    """
    rest = folded(text)
    chosen: list[Span] = []
    for _ in range(_MOST_ROUNDS):
        spans: list[Span] = []
        for kind in sorted(kinds):
            for start, end in DETECTORS[kind](rest):
                spans.append(Span(start, end, kind))
                if len(spans) > MOST_ENTITIES:
                    raise TooManyEntities
        if not spans:
            break
        found = list(_apart(spans))
        chosen += found
        rest = _without(rest, found)
    return sorted(chosen)


def _apart(spans: list[Span]) -> Iterator[Span]:
    """Those that stay of spans that may overlap, from left to right."""
    spans.sort()
    cluster: list[Span] = []
    reach = 0
    for span in spans:
        if cluster and span.start >= reach:
            yield from _settled(cluster)
            cluster = []
        cluster.append(span)
        reach = max(reach, span.end)
    yield from _settled(cluster)


def _settled(cluster: list[Span]) -> list[Span]:
    """Of spans that touch each other, the longest, and what has room beside it."""
    if len(cluster) < 2:
        return cluster
    first = cluster[0].start
    # Places taken: looking a span up costs its own length, however many there are.
    taken = bytearray(max(span.end for span in cluster) - first)
    stays = []
    for span in sorted(cluster, key=lambda s: (s.start - s.end, s.start, s.kind)):
        start, end = span.start - first, span.end - first
        if 1 not in taken[start:end]:
            taken[start:end] = b"\x01" * (end - start)
            stays.append(span)
    return sorted(stays)


def _without(text: str, spans: Iterable[Span]) -> str:
    """The text, equally long, with gaps in place of spans."""
    pieces: list[str] = []
    after = 0
    for span in spans:
        pieces += text[after : span.start], GAP * (span.end - span.start)
        after = span.end
    pieces.append(text[after:])
    return "".join(pieces)
