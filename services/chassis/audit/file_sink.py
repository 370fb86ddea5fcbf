"""Keeps an audit trail in files: append-only lines, made safe together, in segments by day and
size; removes whole segments that are old.

Resumes where it ended, be it in the middle of a line. Which entries there are, and when something
is signed, is not decided here.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.chassis.audit.entry import ChainedEntry, parse_line
from services.chassis.audit.head import Head, parse_head
from services.chassis.audit.segments import (
    Segment,
    heads_path,
    last_entry,
    last_line,
    lines_of,
    segment_path,
    segments_of,
)
from services.chassis.audit.sink import in_thread

_SEGMENT_BYTES = 64 * 1024 * 1024
_DAY_S = 86_400
_MOST_TRAILS = 1024


@dataclass(frozen=True, slots=True)
class Removable:
    """A segment all of whose entries are too old, and the last of them."""

    path: Path
    last: ChainedEntry


class FileSink:
    """One trail in a directory, locked for this process. Made by `open`, which blocks.

    `last` is the entry that it ended with when it was opened, `cut` the bytes of a half-written
    line that were removed then, and `head` the last signed head that lay beside it.
    """

    name = "file"

    def __init__(self, directory: Path, trail: str, lock: int, segment_bytes: int) -> None:
        self._directory = directory
        self._lock = lock
        self._segment_bytes = segment_bytes
        self._busy = threading.Lock()
        self._segment: _Appendix | None = None
        self._day = 0
        self.trail = trail
        self.last: ChainedEntry | None = None
        self.cut = 0
        self._resume()
        self.written = 0 if self.last is None else self.last.entry.sequence
        """The sequence number of the last entry that is safe."""
        self._heads = _Appendix(heads_path(directory, trail))
        self.head = self._last_head()

    @classmethod
    def open(cls, directory: Path, name: str, *, segment_bytes: int = _SEGMENT_BYTES) -> FileSink:
        """Goes on with the first trail of the name that no other process writes: `name`, then
        `name.2`, and so on, one for each process that runs at the same time.

        Raises OSError, and CorruptError when what is there cannot be gone on with.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in range(1, _MOST_TRAILS + 1):
            trail = name if number == 1 else f"{name}.{number}"
            lock = _opened(directory / f"{trail}.lock")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            try:
                return cls(directory, trail, lock, segment_bytes)
            except BaseException:
                os.close(lock)
                raise
        raise OSError(f"{_MOST_TRAILS} processes write a trail {name} in {directory} already")

    async def append(self, entries: Sequence[ChainedEntry], head: Head | None) -> None:
        """As Sink.append."""
        await in_thread(lambda: self._append(entries, head), "audit-file")

    async def close(self) -> None:
        """Lets another process have the trail. A disk that hangs keeps it."""
        if not self._busy.acquire(blocking=False):
            return
        try:
            if self._segment is not None:
                self._segment.close()
            self._heads.close()
            os.close(self._lock)
        finally:
            self._busy.release()

    def removable(self, before: float) -> Removable | None:
        """The oldest segment, if nothing in it is younger than `before` (seconds since the epoch)
        and it is not being written. Blocks. Raises OSError and CorruptError."""
        current = None if self._segment is None else self._segment.path
        oldest = next(iter(segments_of(self._directory, self.trail)), None)
        if oldest is None or oldest.path == current:
            return None
        last, _ = last_entry(oldest.path)
        if last is None or last.entry.time >= before:
            return None
        # Of all of them, not of the last one alone: that may have been added to have the others
        # removed.
        try:
            young = any(parse_line(line).entry.time >= before for line in lines_of(oldest.path))
        except ValueError:
            return None  # somebody changed it: it stays, to be looked at
        return None if young else Removable(oldest.path, last)

    def remove(self, old: Removable, head: Head) -> None:
        """Removes a segment, and the heads of what was in it but for `head`, which is that of its
        last entry. The trail must say so already. Blocks. Raises OSError."""
        with self._busy:
            path = self._heads.path
            draft = path.with_name(path.name + ".new")
            draft.unlink(missing_ok=True)
            with os.fdopen(_opened(draft), "wb") as file:
                file.write(head.line())
                file.writelines(line for line in lines_of(path) if _is_after(line, head))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            self._heads.close()
            self._heads = _Appendix(path)
            old.path.unlink(missing_ok=True)
            _sync_directory(self._directory)

    def _append(self, entries: Sequence[ChainedEntry], head: Head | None) -> None:
        with self._busy:
            new = [entry for entry in entries if entry.entry.sequence > self.written]
            if new:
                self._segment_for(new[0]).append(b"".join(entry.line() for entry in new))
                self.written = new[-1].entry.sequence
            if head is not None:
                self._heads.append(head.line())

    def _segment_for(self, entry: ChainedEntry) -> _Appendix:
        day = int(entry.entry.time) // _DAY_S
        segment = self._segment
        if segment is not None and day <= self._day and segment.size < self._segment_bytes:
            return segment
        path = segment_path(self._directory, self.trail, entry.entry.sequence)
        self._segment = fresh = _Appendix(path)
        self._day = day
        if segment is not None:
            segment.close()
        _sync_directory(self._directory)
        return fresh

    def _resume(self) -> None:
        segments = segments_of(self._directory, self.trail)
        while segments:
            newest: Segment = segments.pop()
            self.last, end = last_entry(newest.path)
            self.cut += newest.path.stat().st_size - end
            if self.last is None:
                # Made for an entry that never came to be.
                newest.path.unlink()
                continue
            self._segment = _Appendix(newest.path, size=end)
            self._day = int(self.last.entry.time) // _DAY_S
            return

    def _last_head(self) -> Head | None:
        line, end = last_line(self._heads.path)
        self.cut += self._heads.size - end
        self._heads.shorten(end)
        try:
            return parse_head(line)
        except ValueError:
            return None


class _Appendix:
    """A file that only ever grows by whole pieces: what was written of one that failed is cut off
    again, at the latest before the next."""

    def __init__(self, path: Path, *, size: int | None = None) -> None:
        self.path = path
        self._file = _opened(path)
        self.size = os.fstat(self._file).st_size if size is None else size
        self.shorten(self.size)

    def append(self, data: bytes) -> None:
        """Returns once the data is safe from a crash. Raises OSError."""
        self.shorten(self.size)
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError:
            self._tidy()
            raise
        self.size += len(data)

    def shorten(self, size: int) -> None:
        """Cuts off what is beyond."""
        if os.fstat(self._file).st_size > size:
            os.ftruncate(self._file, size)
            os.fsync(self._file)
        self.size = size

    def close(self) -> None:
        os.close(self._file)

    def _tidy(self) -> None:
        try:
            self.shorten(self.size)
        except OSError:
            return  # a disk that fails; it is tried again before anything else is written


def _opened(path: Path) -> int:
    """For appending, readable by its owner alone; never through a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(path, flags, 0o600)
    os.fchmod(file, 0o600)
    return file


def _sync_directory(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _is_after(line: bytes, head: Head) -> bool:
    try:
        return parse_head(line).sequence > head.sequence
    except ValueError:
        return True  # for a verification to find
