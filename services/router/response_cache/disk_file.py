"""The file of the cache on disk: made, and moved aside once nobody can read it.

Several workers may find it unreadable at the same time; it is moved once. What is in it,
disk_tier.py knows.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from pathlib import Path

_log = logging.getLogger(__name__)

_BESIDE = ("-wal", "-shm")


class DiskFile:
    """A SQLite file at `path`, readable by its owner only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: tuple[int, int] | None = None

    def prepare(self) -> None:
        """Makes the folder and the file where they are missing. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        self._known = self._identity()

    async def set_aside(self) -> None:
        """Moves the file that was prepared out of the way, unless somebody did. Raises OSError.

        It replaces one that was moved earlier.
        """
        await asyncio.to_thread(self._set_aside)

    def _set_aside(self) -> None:
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._identity() != self._known:
                return
            aside = self.path.with_suffix(".unreadable")
            # These belong to the file: SQLite would read them into a new one.
            for suffix in _BESIDE:
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            os.replace(self.path, aside)
            _log.warning(
                "cache on disk could not be read and starts empty", extra={"moved_to": aside.name}
            )
        finally:
            os.close(lock)

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino
