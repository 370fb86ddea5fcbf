"""Brings the database's tables to the version that this code expects, or back.

It runs inside a transaction of the caller, who holds the lock against other
replicas. The revisions themselves are in migrations/.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

_REVISIONS = Path(__file__).with_name("migrations")


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Applies the revisions that are missing; none missing is no work."""
    command.upgrade(_config(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    """Undoes revisions down to this one; "base" leaves no table of ours."""
    command.downgrade(_config(connection), revision)


def _config(connection: Connection) -> Config:
    config = Config()
    # Alembic interpolates percent signs in its options.
    config.set_main_option("script_location", str(_REVISIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
