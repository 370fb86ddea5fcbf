"""Kept answers in a SQLite file: bounded, surviving restarts, shared by the workers of a machine.

A file that SQLite cannot make sense of is moved aside, see disk_file.py.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiosqlite

from anabranch.v1 import generation_pb2 as pb
from services.router.response_cache.disk_file import DiskFile
from services.router.response_cache.entry import Entry
from services.router.response_cache.key import AnswerKey
from services.router.response_cache.stored_form import PlainForm, StoredForm
from services.router.response_cache.tiers import TierFailed

_log = logging.getLogger(__name__)

_FILE = "answers-1.sqlite"
"""The number is that of the table's form."""
_UNREADABLE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_OVERHEAD_BYTES = 256
"""What a row takes besides its body: key, indexes, the unused rest of a page."""
_BUSY_S = 0.5
_CLOSE_S = 2.0
_GONE_AT_ONCE = 32
_MOST_NOTED = 1000

# How much there is, the file knows by itself: several processes may write to it.
_FORM = """
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, used_at REAL NOT NULL, expires_at REAL NOT NULL, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS answers_used ON answers (used_at);
CREATE INDEX IF NOT EXISTS answers_expiring ON answers (expires_at);
CREATE TABLE IF NOT EXISTS held (id INTEGER PRIMARY KEY CHECK (id = 1),
    answers INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT OR IGNORE INTO held VALUES (1, 0, 0);
CREATE TRIGGER IF NOT EXISTS answer_kept AFTER INSERT ON answers BEGIN
    UPDATE held SET answers = answers + 1, bytes = bytes + length(NEW.body); END;
CREATE TRIGGER IF NOT EXISTS answer_changed AFTER UPDATE OF body ON answers BEGIN
    UPDATE held SET bytes = bytes + length(NEW.body) - length(OLD.body); END;
CREATE TRIGGER IF NOT EXISTS answer_gone AFTER DELETE ON answers BEGIN
    UPDATE held SET answers = answers - 1, bytes = bytes - length(OLD.body); END;
"""
_HELD = "SELECT answers, bytes FROM held"
_GET = "SELECT body FROM answers WHERE key = ? AND length(body) <= ?"
_PUT = """INSERT INTO answers VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE
    SET used_at = excluded.used_at, expires_at = excluded.expires_at, body = excluded.body"""
_USED = "UPDATE answers SET used_at = max(used_at, ?) WHERE key = ?"
_REMOVE = "DELETE FROM answers WHERE key = ?"
_EXPIRE = """DELETE FROM answers WHERE key IN
    (SELECT key FROM answers WHERE expires_at < ? ORDER BY expires_at LIMIT ?)"""
_EVICT = "DELETE FROM answers WHERE key IN (SELECT key FROM answers ORDER BY used_at LIMIT ?)"


class DiskTier:
    """At most `limit` bytes of entries in `directory`, the least recently used ones leaving first.

    `clock` is in seconds of the epoch. `held` is the bytes in the file after the last writing.
    """

    source: pb.CacheSource = pb.CACHE_SOURCE_DISK

    def __init__(
        self,
        directory: Path,
        limit: int,
        clock: Callable[[], float],
        form: StoredForm | None = None,
    ) -> None:
        self._file = DiskFile(directory / _FILE)
        self._form = form or PlainForm()
        self._limit = limit
        self._clock = clock
        # Who reads does not wait for who writes: each has a thread of its own.
        self._reading: aiosqlite.Connection | None = None
        self._writing: aiosqlite.Connection | None = None
        self._unreadable = False
        # When entries were used, which is written once it matters: before some are evicted.
        self._used: dict[bytes, float] = {}
        # What was no entry is removed by who writes, for whom who reads does not wait.
        self._spoiled: set[bytes] = set()
        self.held = 0

    async def open(self) -> None:
        """See Tier."""
        with self._failures():
            if self._reading is not None and self._writing is not None and not self._unreadable:
                await self._reading.execute_fetchall(_HELD)
                return
            await self.close()
            if self._unreadable:
                await self._file.set_aside()
                self._unreadable = False
            await self._connect_or_start_anew()
            await self._make_room()

    async def get(self, key: AnswerKey, longest: int) -> Entry | None:
        """See Tier."""
        with self._failures():
            reading = _usable(self._reading)
            rows = list(
                await reading.execute_fetchall(_GET, (key.digest, self._form.packed_size(longest)))
            )
        if not rows:
            return None
        try:
            entry = await self._form.unpack(key, rows[0][0])
        except ValueError:
            if len(self._spoiled) < _MOST_NOTED:
                self._spoiled.add(key.digest)
            return None
        if len(self._used) < _MOST_NOTED:
            self._used[key.digest] = self._clock()
        return entry if entry.size <= longest else None

    async def put(self, key: AnswerKey, entry: Entry, ttl: float) -> None:
        """See Tier. An entry that alone is too large is not kept."""
        body = await self._form.pack(key, entry)
        if len(body) + _OVERHEAD_BYTES > self._limit:
            return
        now = self._clock()
        with self._failures():
            writing = _usable(self._writing)
            await writing.execute_fetchall(_PUT, (key.digest, now, now + ttl, body))
            self._spoiled.discard(key.digest)
            await self._make_room()

    async def close(self) -> None:
        """See Tier. What is being written is waited for, but not for long."""
        connections = (self._reading, self._writing)
        self._reading = self._writing = None
        for connection in connections:
            if connection is not None:
                try:
                    async with asyncio.timeout(_CLOSE_S):
                        await connection.close()
                except (sqlite3.Error, TimeoutError) as error:
                    _log.warning("cache on disk did not close", extra={"cause": str(error)})

    async def _connect_or_start_anew(self) -> None:
        self._file.prepare()
        try:
            await self._connect()
        except sqlite3.DatabaseError as error:
            if not _is_unreadable(error):
                raise
            await self.close()
            await self._file.set_aside()
            self._file.prepare()
            await self._connect()

    async def _connect(self) -> None:
        # Kept as soon as they are there: one that is not closed keeps its thread.
        self._writing = await self._connection()
        # After a power cut the last answers may be missing, and nothing else is.
        await self._writing.execute_fetchall("PRAGMA synchronous = NORMAL")
        await self._writing.executescript(_FORM)
        self._reading = await self._connection()
        await self._reading.execute_fetchall(_HELD)

    async def _connection(self) -> aiosqlite.Connection:
        # Without isolation_level each statement is a transaction.
        return await aiosqlite.connect(self._file.path, timeout=_BUSY_S, isolation_level=None)

    async def _make_room(self) -> None:
        writing = _usable(self._writing)
        used, self._used = self._used, {}
        if used:
            await writing.executemany(_USED, [(at, key) for key, at in used.items()])
        spoiled, self._spoiled = self._spoiled, set()
        if spoiled:
            await writing.executemany(_REMOVE, [(key,) for key in spoiled])
        await writing.execute_fetchall(_EXPIRE, (self._clock(), _GONE_AT_ONCE))
        while (held := await self._held(writing)) > self._limit:
            await writing.execute_fetchall(_EVICT, (_GONE_AT_ONCE,))
            await writing.execute_fetchall("PRAGMA incremental_vacuum")
        self.held = held

    async def _held(self, connection: aiosqlite.Connection) -> int:
        rows = list(await connection.execute_fetchall(_HELD))
        answers, bodies = rows[0]
        return int(answers) * _OVERHEAD_BYTES + int(bodies)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            unreadable = _is_unreadable(error)
            self._unreadable = self._unreadable or unreadable
            raise TierFailed(str(error), useless=unreadable) from error
        except OSError as error:
            raise TierFailed(error.strerror or type(error).__name__) from error


def _usable(connection: aiosqlite.Connection | None) -> aiosqlite.Connection:
    if connection is None:
        raise TierFailed("it is not open", useless=True)
    return connection


def _is_unreadable(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _UNREADABLE
