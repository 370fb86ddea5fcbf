"""A policy file as it is at one moment, and whether somebody is still writing it.

Blocking calls, for a thread. What the content means is not known here.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from services.router.policy.text import MAX_BYTES

_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Held:
    """What a file holds: `content`, or why that cannot be read. Equal names, equal contents."""

    name: str
    content: bytes = b""
    objection: str = ""


class PolicyFile:
    """One path, looked at again and again.

    A path that leads to another file than before (renamed into place, or a symbolic link that was
    swapped, as Kubernetes does) is taken at once. A file that is changed in place may be half
    written, and half a document may be a good one: it is taken when two looks find it unchanged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()

    def look(self) -> Held | None:
        """What the file holds now; None while it seems to be written."""
        try:
            # Not blocking: whatever is at the path, it must not hold up the looking.
            number = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                status = os.fstat(number)
                if not stat.S_ISREG(status.st_mode):
                    return self._unreadable("is no regular file")
                content = _read(number)
            finally:
                os.close(number)
        except OSError as unreadable:
            return self._unreadable(f"cannot be read: {unreadable.strerror}")
        seen = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        before, self._seen = self._seen, seen
        if before[:2] == seen[:2] and before != seen:
            return None
        return Held(hashlib.sha256(content).hexdigest()[:_DIGITS], content)

    def _unreadable(self, why: str) -> Held:
        self._seen = ()
        return Held(why, objection=why)


def _read(number: int) -> bytes:
    """All of an open file, or a byte more than a document may have."""
    parts: list[bytes] = []
    left = MAX_BYTES + 1
    while left and (part := os.read(number, left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
