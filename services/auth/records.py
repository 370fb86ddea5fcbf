"""Reads and writes rows of the auth service within one transaction, as domain values.

It opens no transaction (store.py does) and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Row
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth.models import clients, revoked_tokens, signing_keys


class AlreadyThere(Exception):
    """A row with this primary key exists."""


@dataclass(frozen=True, slots=True)
class Client:
    """A client as stored; times in unix seconds, `token_life` in seconds or None for the default.

    `secret_hash` is argon2id's own encoding and stays out of the repr.
    """

    client_id: str
    tenant: str
    display_name: str
    scopes: tuple[str, ...]
    token_life: int | None
    secret_hash: str
    created_at: float
    disabled_at: float | None = None

    def __repr__(self) -> str:
        return f"Client({self.client_id!r}, tenant={self.tenant!r}, scopes={self.scopes!r})"

    @property
    def disabled(self) -> bool:
        return self.disabled_at is not None


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A signing key as stored; the private half is sealed."""

    kid: str
    public_key: bytes
    sealed_private_key: bytes
    created_at: float
    active_at: float


class Records:
    """The rows, seen through one open transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def client(self, client_id: str) -> Client | None:
        found = await self._connection.execute(
            select(clients).where(clients.c.client_id == client_id)
        )
        row = found.one_or_none()
        return _client(row) if row is not None else None

    async def any_client(self) -> bool:
        found = await self._connection.execute(select(clients.c.client_id).limit(1))
        return found.first() is not None

    async def clients_after(self, client_id: str, limit: int) -> list[Client]:
        """The next clients in the order of their ids, compared as bytes on every database."""
        column = clients.c.client_id
        if self._connection.dialect.name == "postgresql":
            # The database's own collation may skip hyphens; pages must not depend on it.
            ordered = column.collate("C")
        else:
            ordered = column.collate("BINARY")
        found = await self._connection.execute(
            select(clients).where(ordered > client_id).order_by(ordered).limit(limit)
        )
        return [_client(row) for row in found]

    async def add_client(self, client: Client) -> None:
        """Raises AlreadyThere; the transaction is then fit only to be left."""
        try:
            await self._connection.execute(
                insert(clients).values(
                    client_id=client.client_id,
                    tenant=client.tenant,
                    display_name=client.display_name,
                    scopes=" ".join(sorted(client.scopes)),
                    token_life=client.token_life,
                    secret_hash=client.secret_hash,
                    created_at=client.created_at,
                    disabled_at=client.disabled_at,
                )
            )
        except IntegrityError:
            raise AlreadyThere from None

    async def change_client(
        self,
        client_id: str,
        *,
        display_name: str | None = None,
        scopes: Sequence[str] = (),
        token_life: int | None = None,
        secret_hash: str | None = None,
    ) -> Client | None:
        """The client after the change; None when there is none. What is not given stays."""
        values: dict[str, object] = {}
        if display_name is not None:
            values["display_name"] = display_name
        if scopes:
            values["scopes"] = " ".join(sorted(set(scopes)))
        if token_life is not None:
            values["token_life"] = token_life
        if secret_hash is not None:
            values["secret_hash"] = secret_hash
        if values:
            await self._connection.execute(
                update(clients).where(clients.c.client_id == client_id).values(values)
            )
        return await self.client(client_id)

    async def disable_client(self, client_id: str, now: float) -> bool:
        """Whether there is such a client. One that is disabled keeps its first time."""
        await self._connection.execute(
            update(clients)
            .where(clients.c.client_id == client_id, clients.c.disabled_at.is_(None))
            .values(disabled_at=now)
        )
        return await self.client(client_id) is not None

    async def clients_disabled_since(self, since: float) -> list[str]:
        found = await self._connection.execute(
            select(clients.c.client_id)
            .where(clients.c.disabled_at >= since)
            .order_by(clients.c.client_id)
        )
        return list(found.scalars())

    async def signing_keys(self) -> list[StoredKey]:
        found = await self._connection.execute(select(signing_keys))
        return [
            StoredKey(
                kid=row.kid,
                public_key=row.public_key,
                sealed_private_key=row.sealed_private_key,
                created_at=row.created_at,
                active_at=row.active_at,
            )
            for row in found
        ]

    async def add_signing_key(self, key: StoredKey) -> None:
        await self._connection.execute(
            insert(signing_keys).values(
                kid=key.kid,
                public_key=key.public_key,
                sealed_private_key=key.sealed_private_key,
                created_at=key.created_at,
                active_at=key.active_at,
            )
        )

    async def replace_sealed_key(self, kid: str, sealed_private_key: bytes) -> None:
        """The same private key, sealed otherwise."""
        await self._connection.execute(
            update(signing_keys)
            .where(signing_keys.c.kid == kid)
            .values(sealed_private_key=sealed_private_key)
        )

    async def forget_signing_keys(self, kids: Sequence[str]) -> None:
        await self._connection.execute(delete(signing_keys).where(signing_keys.c.kid.in_(kids)))

    async def revoke_token(self, token_id: str, client_id: str, expires_at: float) -> None:
        """Idempotent, also when two replicas revoke the same token at once."""
        dialect = self._connection.dialect.name
        insert_into = postgresql.insert if dialect == "postgresql" else sqlite.insert
        await self._connection.execute(
            insert_into(revoked_tokens)
            .values(token_id=token_id, client_id=client_id, expires_at=expires_at)
            .on_conflict_do_nothing()
        )

    async def is_revoked(self, token_id: str) -> bool:
        found = await self._connection.execute(
            select(revoked_tokens.c.token_id).where(revoked_tokens.c.token_id == token_id)
        )
        return found.first() is not None

    async def revoked_tokens(self, expiring_after: float) -> list[str]:
        found = await self._connection.execute(
            select(revoked_tokens.c.token_id)
            .where(revoked_tokens.c.expires_at >= expiring_after)
            .order_by(revoked_tokens.c.token_id)
        )
        return list(found.scalars())

    async def forget_revocations(self, expired_before: float) -> int:
        """Drops revocations of tokens that are dead anyway; returns how many."""
        done = await self._connection.execute(
            delete(revoked_tokens).where(revoked_tokens.c.expires_at < expired_before)
        )
        return int(done.rowcount)


def _client(row: Row[tuple[object, ...]]) -> Client:
    return Client(
        client_id=row.client_id,
        tenant=row.tenant,
        display_name=row.display_name,
        scopes=tuple(row.scopes.split()),
        token_life=row.token_life,
        secret_hash=row.secret_hash,
        created_at=row.created_at,
        disabled_at=row.disabled_at,
    )
