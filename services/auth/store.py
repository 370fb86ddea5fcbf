"""Opens the auth database (SQLite or PostgreSQL) and its transactions.

What is read and written inside a transaction is records.py's; the shape of the
tables is migrations/'s. A database that cannot be reached becomes one Fault here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from anabranch.v1 import errors_pb2
from services.auth import migrate
from services.auth.records import Records
from services.chassis.errors import Fault

_log = logging.getLogger(__name__)

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
_BUSY_SECONDS = 10.0
_AGAIN_SECONDS = 0.01
_CONNECT_SECONDS = 0.9
_COMMAND_SECONDS = 5.0
_RETRY_SECONDS = 1.0
# Any number does, as long as nobody else in this database uses it: "anab" in ASCII.
_ADVISORY_LOCK = 0x616E6162

# What the driver raises outside SQLAlchemy's own classes is a failed connection
# or a statement that took too long.
_AWAY = (
    OperationalError,
    PoolTimeout,
    TimeoutError,
    ConnectionError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
)
# SQLSTATE classes: connection lost, resources used up, operator at work; and
# "read only", which is what a failover looks like from the old primary.
_OUTAGES = ("08", "53", "57", "25006")


def database_url(text_of_url: str) -> URL:
    """Parses a URL and adds the driver. Raises ValueError, whose text holds no password."""
    try:
        url = make_url(text_of_url)
    except (ArgumentError, ValueError):
        raise ValueError("the database URL cannot be parsed") from None
    kind = "postgresql" if url.drivername == "postgres" else url.drivername.partition("+")[0]
    driver = _DRIVERS.get(kind)
    if driver is None or ("+" in url.drivername and url.drivername != driver):
        raise ValueError(f"the database must be one of {', '.join(_DRIVERS.values())}")
    if kind == "sqlite" and not url.database:
        raise ValueError("the SQLite database must be a file")
    return url.set(drivername=driver)


def sqlite_file(url: URL) -> Path | None:
    """The file of a SQLite database; None for another kind."""
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


class Store:
    """A pool of connections and the three kinds of transaction on it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._sqlite = engine.dialect.name == "sqlite"

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Records]:
        """A transaction that only reads. Raises Fault when the database is away."""
        async with self._transaction("BEGIN") as connection:
            yield Records(connection)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Records]:
        """A transaction that is committed on leaving, rolled back on an exception."""
        async with self._transaction("BEGIN IMMEDIATE") as connection:
            yield Records(connection)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[Records]:
        """As `writing`, while no other replica is in a block of this kind."""
        async with self._locked() as connection:
            yield Records(connection)

    async def ping(self) -> None:
        """Has the database answer. Raises Fault when it is away."""
        async with self._transaction("BEGIN") as connection:
            await connection.execute(text("SELECT 1"))

    async def upgrade(self, revision: str = "head") -> None:
        """Applies missing migrations, once, however many replicas start together."""
        async with self._locked() as connection:
            await connection.run_sync(migrate.upgrade, revision)

    async def downgrade(self, revision: str) -> None:
        async with self._locked() as connection:
            await connection.run_sync(migrate.downgrade, revision)

    async def close(self) -> None:
        await self._engine.dispose()

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[AsyncConnection]:
        # SQLite admits one writing transaction at a time, which is the lock.
        # PostgreSQL's ends with the transaction, also when this process dies.
        async with self._transaction("BEGIN IMMEDIATE") as connection:
            if not self._sqlite:
                await connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK}
                )
            yield connection

    @asynccontextmanager
    async def _transaction(self, sqlite_begin: str) -> AsyncIterator[AsyncConnection]:
        async with AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(self._engine.connect())
            except (*_AWAY, OSError, DBAPIError) as away:
                raise _unreachable(away) from away
            if self._sqlite:
                await connection.execution_options(anabranch_begin=sqlite_begin)
            try:
                async with connection.begin():
                    yield connection
            # No OSError here: the block's own files are not the database.
            except _AWAY as away:
                raise _unreachable(away) from away
            except DBAPIError as failed:
                if failed.connection_invalidated or _sqlstate(failed).startswith(_OUTAGES):
                    raise _unreachable(failed) from failed
                raise


def _sqlstate(error: DBAPIError) -> str:
    """PostgreSQL's code of an error; empty for SQLite's."""
    return getattr(error.orig, "sqlstate", None) or ""


def _unreachable(cause: Exception) -> Fault:
    _log.warning("the database is away", extra={"cause": f"{type(cause).__name__}: {cause}"})
    return Fault(
        errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        "the auth service cannot reach its database",
        metadata={"dependency": "database"},
        retry_after=_RETRY_SECONDS,
    )


@asynccontextmanager
async def open_store(url: URL) -> AsyncIterator[Store]:
    """The store of this URL, migrated; closed on leaving.

    Raises Fault (DEPENDENCY_UNAVAILABLE) when the database is away.
    """
    file = sqlite_file(url)
    if file is not None:
        await asyncio.to_thread(_make_sqlite, file)
    store = Store(_sqlite_engine(url) if file is not None else _postgresql_engine(url))
    try:
        await store.upgrade()
        yield store
    finally:
        await store.close()


def _postgresql_engine(url: URL) -> AsyncEngine:
    return create_async_engine(
        url,
        pool_size=5,
        max_overflow=5,
        pool_timeout=_CONNECT_SECONDS,
        pool_pre_ping=True,
        # A statement's values may be hashes and sealed keys: never in an exception's text.
        hide_parameters=True,
        connect_args={"timeout": _CONNECT_SECONDS, "command_timeout": _COMMAND_SECONDS},
    )


def _make_sqlite(file: Path) -> None:
    """Creates the database's file, unless it is there, and has it keep a write-ahead log.

    Raises Fault when that cannot be done.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite gives its journals the mode of the database, so this one call keeps hashes from other
    # accounts of the machine. Not for a file that is there: to close it would drop the locks that
    # this process's own connections hold on it.
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    give_up = time.monotonic() + _BUSY_SECONDS
    try:
        with closing(sqlite3.connect(file, timeout=_BUSY_SECONDS)) as connection:
            while not _keeps_log(connection):
                if time.monotonic() > give_up:
                    raise sqlite3.OperationalError("database is locked")
                time.sleep(_AGAIN_SECONDS)
    except sqlite3.Error as away:
        raise _unreachable(away) from away


def _keeps_log(connection: sqlite3.Connection) -> bool:
    """Whether it does now. The mode stays with the file; to change it is the one step for which
    SQLite does not wait its turn when replicas start together."""
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError as busy:
        if busy.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True


def _sqlite_engine(url: URL) -> AsyncEngine:
    engine = create_async_engine(url, hide_parameters=True, connect_args={"timeout": _BUSY_SECONDS})
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver's own implicit BEGIN comes too late to cover reads and table
    # changes; `_begin_sqlite` says BEGIN itself.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE takes the write lock first, where the driver waits its turn; a
    # reader that later wants to write is refused at once instead.
    connection.exec_driver_sql(connection.get_execution_options().get("anabranch_begin", "BEGIN"))
