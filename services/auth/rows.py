"""What the tables' readers and writers share: lists in one column, and orders that all agree on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection


class AlreadyThere(Exception):
    """A row with this primary key exists."""


def joined(items: Iterable[str]) -> str:
    """A list as one column holds it: sorted, each item once."""
    return " ".join(sorted(set(items)))


def listed(text: str) -> tuple[str, ...]:
    """The list that a column holds."""
    return tuple(text.split())


def as_bytes(connection: AsyncConnection, column: ColumnElement[Any]) -> ColumnElement[Any]:
    """The column compared as bytes, on every database alike.

    PostgreSQL's own collation may skip hyphens; pages must not depend on it.
    """
    return column.collate("C" if connection.dialect.name == "postgresql" else "BINARY")


def insert_into(connection: AsyncConnection, table: Any) -> Any:
    """An INSERT of the database's own dialect, which can say what to do with a conflict."""
    dialect = connection.dialect.name
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
