"""Vectors that stand for texts: deterministic, of unit length, and meaning nothing. Pure."""

from __future__ import annotations

import hashlib
import math

DIMENSION = 8
_MOST = 4096


def vector(text: str, dimension: int | None = None) -> list[float]:
    """The vector of a text, of `dimension` numbers (8). Raises ValueError beyond 1 to 4096."""
    wanted = DIMENSION if dimension is None else dimension
    if not 1 <= wanted <= _MOST:
        raise ValueError(f"an embedding has 1 to {_MOST} dimensions")
    raw = [_number(text, position) for position in range(wanted)]
    length = math.sqrt(sum(x * x for x in raw))
    return [x / length for x in raw]


def _number(text: str, position: int) -> float:
    digest = hashlib.sha256(f"{text}\0{position}".encode()).digest()
    # Odd, so that it is never 0 and a vector always has a length.
    return (int.from_bytes(digest[:4], "big") * 2 + 1 - (1 << 32)) / (1 << 32)
