"""What is old leaves the auth service's audit trail, and what is left verifies once exported."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import pytest
from sqlalchemy.engine import make_url

from services.auth.acts import Acts
from services.auth.audit_records import StoredEntry, Wanted
from services.auth.store import Store, database_url, open_store
from services.chassis.audit.entry import Act, parse_line
from services.chassis.audit.verify import PRUNED, Kind, Report, verify
from tests.support.audit import SIGNER
from tests.support.databases import BOTH, empty_database
from tests.support.postgres import postgres_server

NOW = 1_790_000_000.0
RETENTION = 400 * 86_400.0


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(params=BOTH)
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    return await empty_database(request.param, tmp_path, request)


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with open_store(database_url(url)) as opened:
        yield opened


async def append(store: Store, count: int, *, time: float) -> None:
    async with store.alone() as records:
        acts = [Act("client.create", target=f"c-{number}") for number in range(count)]
        await records.trail.append(acts, time)


async def prune(store: Store) -> None:
    await Acts(store, spool=10, retention=RETENTION, clock=lambda: NOW).prune()


async def rows(store: Store) -> list[StoredEntry]:
    async with store.reading() as records:
        return await records.trail.page(Wanted(oldest_first=True), 1000)


async def exported(store: Store) -> Report:
    """What a verification says of a copy, with the head that is signed as it is made."""
    lines = [
        b'{"entry":%s,"hash":"%s"}\n' % (row.canonical.encode(), row.hash.hex().encode())
        for row in await rows(store)
    ]
    head = SIGNER.sign(parse_line(lines[-1]), time=NOW)
    return verify(lines, [head.line()], trail="auth", public_keys=[SIGNER.public_key])


async def execute(url: str, statement: str) -> None:
    """What somebody who can write the database does to it."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(parsed.database or "", timeout=30)) as connection:
            assert connection.execute(statement).rowcount > 0
            connection.commit()
        return
    plain = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(plain)
    try:
        assert not (await connection.execute(statement)).endswith(" 0")
    finally:
        await connection.close()


async def test_what_is_older_than_the_retention_goes_and_the_rest_verifies(store: Store) -> None:
    await append(store, 5, time=NOW - RETENTION - 1)
    await append(store, 3, time=NOW - RETENTION)
    await prune(store)
    assert [row.sequence for row in await rows(store)] == [6, 7, 8, 9]
    report = await exported(store)
    assert report.intact, report.findings
    assert report.absent == [(1, 5)]
    # Nothing more is old, so nothing more is said.
    await prune(store)
    assert [row.sequence for row in await rows(store)] == [6, 7, 8, 9]


async def test_a_trail_that_was_pruned_twice_verifies(store: Store) -> None:
    await append(store, 4, time=NOW - RETENTION - 2)
    await append(store, 4, time=NOW - 1)
    await prune(store)
    later = NOW + RETENTION
    await append(store, 2, time=later)
    await Acts(store, spool=10, retention=RETENTION, clock=lambda: later + 1).prune()
    report = await exported(store)
    assert report.absent[0][0] == 1
    assert report.absent[0][1] > 4
    assert report.intact, report.findings


@pytest.mark.parametrize("count", [1, 5])
async def test_a_trail_of_which_all_is_old_is_not_emptied(store: Store, count: int) -> None:
    await append(store, count, time=NOW - RETENTION - 1)
    await prune(store)
    assert (await rows(store))[-1].sequence >= count
    report = await exported(store)
    assert report.intact, report.findings


async def test_without_the_entry_that_states_it_a_removed_beginning_is_found(
    store: Store, url: str
) -> None:
    await append(store, 5, time=NOW - RETENTION - 1)
    await append(store, 3, time=NOW)
    await prune(store)
    assert (await exported(store)).intact
    await execute(url, f"DELETE FROM audit_entries WHERE action = '{PRUNED}'")
    assert {f.kind for f in (await exported(store)).findings} == {Kind.START_MISSING}


async def test_whoever_removes_more_than_was_pruned_is_found(store: Store, url: str) -> None:
    await append(store, 5, time=NOW - RETENTION - 1)
    await append(store, 3, time=NOW)
    await prune(store)
    await execute(url, "DELETE FROM audit_entries WHERE sequence = 6")
    assert {f.kind for f in (await exported(store)).findings} == {Kind.START_MISSING}
