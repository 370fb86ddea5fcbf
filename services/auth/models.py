"""The tables of the auth service as SQLAlchemy sees them. migrations/ creates and changes them.

Times are unix seconds in double precision, so that both databases hold the
same value and no time zone can creep in. Scopes are space-separated and sorted.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
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
    Column("tenant", String(63), nullable=False, index=True),
    Column("display_name", String(200), nullable=False),
    Column("scopes", String(500), nullable=False),
    Column("roles", Text, nullable=False, server_default=""),
    Column("models", Text, nullable=False, server_default="*"),
    # In CIDR notation; none: from everywhere.
    Column("networks", Text, nullable=False, server_default=""),
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
    # The public id, which is part of the key.
    Column("key_id", String(16), primary_key=True),
    Column("client_id", String(63), ForeignKey("clients.client_id"), nullable=False, index=True),
    Column("display_name", String(200), nullable=False),
    Column("scopes", String(500), nullable=False),
    Column("models", Text, nullable=False),
    # HMAC-SHA256 of the secret part under the service's pepper.
    Column("secret_mac", LargeBinary, nullable=False),
    Column("created_by", String(63), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=True),
    Column("last_used_at", Double, nullable=True),
    Column("revoked_at", Double, nullable=True, index=True),
)

roles = Table(
    "roles",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("description", String(200), nullable=False),
    Column("scopes", String(500), nullable=False),
    Column("models", Text, nullable=False),
)

quotas = Table(
    "quotas",
    metadata,
    Column("quota_id", String(300), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("client_id", String(63), nullable=False),
    Column("model", String(128), nullable=False),
    Column("unit", String(16), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("period", Integer, nullable=False),
    Column("burst", BigInteger, nullable=False),
)

tenants = Table(
    "tenants",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("display_name", String(200), nullable=False),
    Column("audit_detail", String(16), nullable=False),
    Column("cipher", String(16), nullable=False),
)

sealed_secrets = Table(
    "sealed_secrets",
    metadata,
    # What it is for, such as the pepper of API keys.
    Column("name", String(63), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", Double, nullable=False),
)

audit_entries = Table(
    "audit_entries",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    # What is queried, again apart: the entry is what the hash is of.
    Column("time", Double, nullable=False, index=True),
    Column("client_id", String(63), nullable=False, index=True),
    Column("tenant", String(63), nullable=False, index=True),
    Column("action", String(63), nullable=False),
    Column("entry", Text, nullable=False),
    Column("previous_hash", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)
