"""Small documents that the registry's server holds under a key: the role, and what is believed.

Values, a protocol and one pure rule; the kinds are in the modules beside this one.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

_KEY = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")
LONGEST_KEY = 512


@dataclass(frozen=True, slots=True)
class Entry:
    """What is held under a key; `value` None: nothing. `index` is another after each write, and 0
    where nothing is held."""

    value: bytes | None = None
    index: int = 0


class KeyValuesUnavailable(Exception):
    """The server cannot be asked, or refuses; the text is for logs."""


class KeyValues(Protocol):
    """Where documents are held that many processes follow."""

    async def get(self, key: str) -> Entry:
        """What is held now. Raises KeyValuesUnavailable."""

    async def put(self, key: str, value: bytes, index: int) -> bool:
        """Writes a value if the entry is still the one of `index` (0: if there is none).

        False when it is another by now. Raises KeyValuesUnavailable, after which it may or may
        not have been written.
        """

    def watch(self, key: str) -> AsyncIterator[Entry]:
        """What is held, then each change; the first as soon as the server can be asked.

        While it cannot be, nothing is yielded. That a value is gone is yielded only if the
        server has said so in good health, see LastValue. Ends when this is closed.
        """

    async def close(self) -> None:
        """Ends every watch and releases what is held."""


class LastValue:
    """Which entry is in force, given what the server answered and when it failed.

    A server that comes back from an outage, or whose index went backwards, may have lost what it
    held. So an entry that was there before and is missing after that stays in force until there is
    one again: whoever meant to remove it writes the default instead. What is lost without either
    sign, in an outage shorter than the pause between two looks, counts as removed.
    """

    def __init__(self) -> None:
        self._shown: Entry | None = None
        self._doubtful = False

    @property
    def is_kept(self) -> bool:
        """Whether an entry is in force that the server may have lost."""
        return self._doubtful

    def failed(self) -> None:
        """Takes a failure to ask."""
        self._doubtful = self._shown is not None

    def answered(self, entry: Entry, *, memory_lost: bool) -> Entry | None:
        """Takes an answer; returns the entry now in force if it changed."""
        self._doubtful = self._doubtful or memory_lost
        had_one = self._shown is not None and self._shown.value is not None
        if self._doubtful and had_one and entry.value is None:
            return None
        self._doubtful = False
        if entry == self._shown:
            return None
        self._shown = entry
        return entry


def check_key(key: str) -> None:
    """Raises ValueError for a key that could be read in two ways, or by no server."""
    if len(key) > LONGEST_KEY or not _KEY.fullmatch(key) or {".", ".."} & set(key.split("/")):
        raise ValueError(
            f"a key is made of letters, digits and . _ - between slashes, at most {LONGEST_KEY} "
            "characters, and does not begin with a slash"
        )
