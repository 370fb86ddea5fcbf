"""Which backend a key belongs to: consistent hashing, alike in every router.

Karger et al. (1997): each backend has several places on a ring, a key belongs to the next one, so
that a backend that comes or goes moves its own share of keys and no others.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable
from hashlib import blake2b

_PLACES = 64


class Ring:
    """Backends on a ring."""

    def __init__(self, backends: Iterable[str]) -> None:
        places = sorted(
            (_hash(f"{backend}/{place}"), backend)
            for backend in backends
            for place in range(_PLACES)
        )
        self._at = [at for at, _ in places]
        self._who = [who for _, who in places]

    def holder(self, key: str) -> str:
        """The backend that a key belongs to; empty on an empty ring."""
        if not self._at:
            return ""
        return self._who[bisect(self._at, _hash(key)) % len(self._who)]


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
