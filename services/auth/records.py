"""Reads and writes rows of the auth service within one transaction, as domain values.

It opens no transaction (store.py does) and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth.audit_records import AuditRecords
from services.auth.key_records import ApiKey, KeyRecords, key_of
from services.auth.models import api_keys, clients, revoked_tokens, signing_keys
from services.auth.rows import AlreadyThere, as_bytes, joined, listed
from services.auth.rule_records import RuleRecords


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
    roles: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()

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
    """Clients, signing keys and revoked tokens, seen through one open transaction.

    `keys`, `rules` and `trail` are the other tables, in the same transaction.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self.keys = KeyRecords(connection)
        self.rules = RuleRecords(connection)
        self.trail = AuditRecords(connection)

    async def client(self, client_id: str) -> Client | None:
        found = await self._connection.execute(
            select(clients).where(clients.c.client_id == client_id)
        )
        row = found.one_or_none()
        return _client(row) if row is not None else None

    async def key_and_client(self, key_id: str) -> tuple[ApiKey, Client] | None:
        """An API key and whom it stands for, in one question: it takes as many steps whether there
        is such a key or not."""
        found = await self._connection.execute(_KEY_AND_CLIENT.where(api_keys.c.key_id == key_id))
        row = found.one_or_none()
        if row is None:
            return None
        own = row._mapping
        client = SimpleNamespace(**{c.name: own[_OF_CLIENT + c.name] for c in clients.c})
        return key_of(row), _client(client)

    async def any_client(self) -> bool:
        found = await self._connection.execute(select(clients.c.client_id).limit(1))
        return found.first() is not None

    async def clients_after(
        self, client_id: str, limit: int, *, tenant: str | None = None
    ) -> list[Client]:
        """The next clients, of a tenant or of all, in the order of their ids."""
        ordered = as_bytes(self._connection, clients.c.client_id)
        asked = select(clients).where(ordered > client_id).order_by(ordered).limit(limit)
        if tenant is not None:
            asked = asked.where(clients.c.tenant == tenant)
        return [_client(row) for row in await self._connection.execute(asked)]

    async def add_client(self, client: Client) -> None:
        """Raises AlreadyThere; the transaction is then fit only to be left."""
        try:
            await self._connection.execute(
                insert(clients).values(
                    client_id=client.client_id,
                    tenant=client.tenant,
                    display_name=client.display_name,
                    scopes=joined(client.scopes),
                    token_life=client.token_life,
                    secret_hash=client.secret_hash,
                    created_at=client.created_at,
                    disabled_at=client.disabled_at,
                    roles=joined(client.roles),
                    models=joined(client.models),
                    networks=joined(client.networks),
                )
            )
        except IntegrityError:
            raise AlreadyThere from None

    async def change_client(
        self,
        client_id: str,
        *,
        display_name: str | None = None,
        scopes: Sequence[str] | None = None,
        roles: Sequence[str] | None = None,
        models: Sequence[str] | None = None,
        networks: Sequence[str] | None = None,
        token_life: int | None = None,
        secret_hash: str | None = None,
    ) -> Client | None:
        """The client after the change; None when there is none. What is not given stays."""
        values: dict[str, object] = {}
        if display_name is not None:
            values["display_name"] = display_name
        lists = {"scopes": scopes, "roles": roles, "models": models, "networks": networks}
        values |= {name: joined(given) for name, given in lists.items() if given is not None}
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

    async def signing_kids(self) -> list[str]:
        """The ids of all signing keys."""
        return list((await self._connection.execute(select(signing_keys.c.kid))).scalars())

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

    async def revocations_of(self, client_id: str, now: float) -> int:
        """How many of the client's tokens are revoked that have not ended."""
        found = await self._connection.execute(
            select(func.count())
            .select_from(revoked_tokens)
            .where(revoked_tokens.c.client_id == client_id, revoked_tokens.c.expires_at > now)
        )
        return int(found.scalar_one())

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


_OF_CLIENT = "client__"
_KEY_AND_CLIENT = select(
    # The names of both tables' columns overlap.
    api_keys,
    clients.c.tenant,
    *(column.label(_OF_CLIENT + column.name) for column in clients.c),
).join(clients, clients.c.client_id == api_keys.c.client_id)


def _client(row: Any) -> Client:
    return Client(
        client_id=row.client_id,
        tenant=row.tenant,
        display_name=row.display_name,
        scopes=listed(row.scopes),
        token_life=row.token_life,
        secret_hash=row.secret_hash,
        created_at=row.created_at,
        disabled_at=row.disabled_at,
        roles=listed(row.roles),
        models=listed(row.models),
        networks=listed(row.networks),
    )
