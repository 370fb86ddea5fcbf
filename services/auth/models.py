"""The tables of the auth service as SQLAlchemy sees them. migrations/ creates and changes them.

Times are unix seconds in double precision, so that both databases hold the
same value and no time zone can creep in. Scopes are space-separated and sorted.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Double,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

clients = Table(
    "clients",
    metadata,
    Column("client_id", String(63), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("display_name", String(200), nullable=False),
    Column("scopes", String(500), nullable=False),
    # NULL follows the service's default, also when that changes later.
    Column("token_life", Integer, nullable=True),
    Column("secret_hash", String(255), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("disabled_at", Double, nullable=True, index=True),
)

signing_keys = Table(
    "signing_keys",
    metadata,
    Column("kid", String(64), primary_key=True),
    # The 32 bytes of the public Ed25519 key.
    Column("public_key", LargeBinary, nullable=False),
    # The private key, sealed by vault.py for this kid in an envelope of its own.
    Column("sealed_private_key", LargeBinary, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("active_at", Double, nullable=False),
)

revoked_tokens = Table(
    "revoked_tokens",
    metadata,
    Column("token_id", String(64), primary_key=True),
    Column("client_id", String(63), nullable=False),
    Column("expires_at", Double, nullable=False, index=True),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", String(63), primary_key=True),
    Column("client_id", String(63), ForeignKey("clients.client_id"), nullable=False, index=True),
    Column("scopes", String(500), nullable=False),
    # HMAC-SHA256 of the secret part under the service's pepper.
    Column("secret_mac", LargeBinary, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=True),
    Column("revoked", Boolean, nullable=False),
)
