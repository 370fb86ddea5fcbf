"""Reads and appends the audit trail within one transaction of the database.

Which act is worth an entry is decided elsewhere. Entries follow each other without gaps because
whoever appends holds the lock that all replicas share (Store.alone).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth.models import audit_entries
from services.chassis.audit.entry import Act, ChainedEntry, Entry, chain, parse_line

TRAIL = "auth"
"""The one trail of all replicas on a database."""


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """A row as it is, whoever may have changed it: `entry` is None when it is no entry any more."""

    sequence: int
    canonical: str
    previous_hash: bytes
    hash: bytes
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries are asked for; times in unix seconds, empty texts mean any.

    `after` is the sequence number behind which to go on, in either order.
    """

    after: int | None = None
    oldest_first: bool = False
    since: float | None = None
    until: float | None = None
    client_id: str = ""
    action: str = ""
    tenant: str = ""


class AuditRecords:
    """The rows, seen through one open transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def last(self) -> ChainedEntry | None:
        """The trail's end."""
        found = await self._connection.execute(
            select(audit_entries).order_by(audit_entries.c.sequence.desc()).limit(1)
        )
        row = found.one_or_none()
        return None if row is None else _chained(row)

    async def append(self, acts: Sequence[Act], time: float) -> ChainedEntry | None:
        """Places acts at the end; returns the last entry. Only under the lock of all replicas."""
        last = await self.last()
        rows = []
        for act in acts:
            previous = bytes(32) if last is None else last.hash
            last = chain(last, act, trail=TRAIL, time=time)
            rows.append(_row(last, previous))
        if rows:
            await self._connection.execute(insert(audit_entries), rows)
        return last

    async def page(self, wanted: Wanted, limit: int) -> list[StoredEntry]:
        """The entries that are asked for, in that order."""
        columns = audit_entries.c
        upward = wanted.oldest_first
        order = columns.sequence.asc() if upward else columns.sequence.desc()
        asked = select(audit_entries).order_by(order).limit(limit)
        if wanted.after is not None:
            beyond = columns.sequence > wanted.after
            asked = asked.where(beyond if upward else columns.sequence < wanted.after)
        if wanted.since is not None:
            asked = asked.where(columns.time >= wanted.since)
        if wanted.until is not None:
            asked = asked.where(columns.time <= wanted.until)
        for column in (columns.client_id, columns.action, columns.tenant):
            value = getattr(wanted, column.name)
            if value:
                asked = asked.where(column == value)
        return [_stored(row) for row in await self._connection.execute(asked)]

    async def prune(self, older_than: float) -> tuple[int, bytes] | None:
        """Removes what is older, but never the last entry; the last removed one's sequence and
        hash, or None when there is nothing to remove."""
        columns = audit_entries.c
        # By sequence, not by time: clocks of replicas differ, and a gap would look like a theft.
        found = await self._connection.execute(
            select(func.min(columns.sequence)).where(columns.time >= older_than)
        )
        first_kept = found.scalar_one()
        if first_kept is None:
            return None
        row = (
            await self._connection.execute(
                select(audit_entries)
                .where(columns.sequence < first_kept)
                .order_by(columns.sequence.desc())
                .limit(1)
            )
        ).one_or_none()
        if row is None:
            return None
        await self._connection.execute(
            delete(audit_entries).where(columns.sequence <= row.sequence)
        )
        return row.sequence, row.hash


def _row(chained: ChainedEntry, previous: bytes) -> dict[str, Any]:
    entry = chained.entry
    return {
        "sequence": entry.sequence,
        "time": entry.time,
        "client_id": entry.act.client_id[:63],
        "tenant": entry.act.tenant[:63],
        "action": entry.act.action[:63],
        "entry": entry.canonical().decode(),
        "previous_hash": previous,
        "hash": chained.hash,
    }


def _chained(row: Any) -> ChainedEntry:
    """Raises ValueError for a row that somebody changed into no entry."""
    return parse_line(b'{"entry":%s,"hash":"%s"}\n' % (row.entry.encode(), row.hash.hex().encode()))


def _stored(row: Any) -> StoredEntry:
    try:
        entry: Entry | None = _chained(row).entry
    except ValueError:
        entry = None
    return StoredEntry(row.sequence, row.entry, row.previous_hash, row.hash, entry)
