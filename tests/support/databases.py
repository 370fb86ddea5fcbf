"""Empty databases for tests: a SQLite file, or one of a private PostgreSQL server's.

What runs on PostgreSQL is marked `cluster` and left out where no server is installed.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import pytest
from sqlalchemy.engine import make_url

from tests.support.postgres import binaries

needs_postgres = [
    pytest.mark.cluster,
    pytest.mark.skipif(binaries() is None, reason="no PostgreSQL server installed"),
]
BOTH = ["sqlite", pytest.param("postgresql", marks=needs_postgres)]
"""Parameters of a fixture that calls `empty_database`."""


async def empty_database(kind: str, directory: Path, request: pytest.FixtureRequest) -> str:
    """The URL of a new one; for PostgreSQL the test module has a fixture `postgres`."""
    if kind == "sqlite":
        return f"sqlite+aiosqlite:///{directory / 'auth.db'}"
    server = make_url(request.getfixturevalue("postgres"))
    name = f"t{secrets.token_hex(6)}"
    plain = server.set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(plain)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return server.set(database=name).render_as_string(hide_password=False)
