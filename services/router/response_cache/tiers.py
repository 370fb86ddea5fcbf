"""What a store of kept answers beyond the process's memory is to the cache. Only the interface."""

from __future__ import annotations

from typing import Protocol

from anabranch.v1 import generation_pb2 as pb
from services.router.response_cache.entry import Entry
from services.router.response_cache.key import AnswerKey


class TierFailed(Exception):
    """The store did not do what it was asked; `useless` when it will not until it is opened again.

    The text names no key and no content.
    """

    def __init__(self, why: str, *, useless: bool = False) -> None:
        super().__init__(why)
        self.useless = useless


class Tier(Protocol):
    """A store that is slower than memory and holds more. Every method may raise TierFailed."""

    @property
    def source(self) -> pb.CacheSource:
        """What receipts call it."""

    @property
    def held(self) -> int | None:
        """What it holds; None where only the store knows."""

    async def open(self) -> None:
        """Makes it usable, or finds that it is: at the start, and again after failures."""

    async def get(self, key: AnswerKey, longest: int) -> Entry | None:
        """The entry of a key. None for one of more than `longest` bytes, and for what is none.

        What is none, or cannot be opened, is removed, at once or when the store next makes room.
        """

    async def put(self, key: AnswerKey, entry: Entry, ttl: float) -> None:
        """Keeps an entry for so many seconds, or for less."""

    async def close(self) -> None:
        """Gives back what it holds. It is not used any more."""
