"""Reads and writes API keys and sealed secrets within one transaction. It decides nothing."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth.models import api_keys, clients, sealed_secrets
from services.auth.rows import AlreadyThere, as_bytes, joined, listed


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as stored; times in unix seconds. `secret_mac` stays out of the repr."""

    key_id: str
    client_id: str
    display_name: str
    scopes: tuple[str, ...]
    models: tuple[str, ...]
    secret_mac: bytes
    created_by: str
    created_at: float
    expires_at: float | None = None
    last_used_at: float | None = None
    revoked_at: float | None = None
    tenant: str = ""

    def __repr__(self) -> str:
        return f"ApiKey({self.key_id!r}, client_id={self.client_id!r}, scopes={self.scopes!r})"


class KeyRecords:
    """The rows, seen through one open transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def key(self, key_id: str) -> ApiKey | None:
        """The key of this public id."""
        found = await self._connection.execute(_SELECT.where(api_keys.c.key_id == key_id))
        row = found.one_or_none()
        return key_of(row) if row is not None else None

    async def add(self, key: ApiKey) -> None:
        """Raises AlreadyThere; the transaction is then fit only to be left."""
        try:
            await self._connection.execute(
                insert(api_keys).values(
                    key_id=key.key_id,
                    client_id=key.client_id,
                    display_name=key.display_name,
                    scopes=joined(key.scopes),
                    models=joined(key.models),
                    secret_mac=key.secret_mac,
                    created_by=key.created_by,
                    created_at=key.created_at,
                    expires_at=key.expires_at,
                )
            )
        except IntegrityError:
            raise AlreadyThere from None

    async def after(
        self, key_id: str, limit: int, *, client_id: str = "", tenant: str | None = None
    ) -> list[ApiKey]:
        """The next keys, of a client or a tenant or of all, in the order of their ids."""
        ordered = as_bytes(self._connection, api_keys.c.key_id)
        asked = _SELECT.where(ordered > key_id).order_by(ordered).limit(limit)
        if client_id:
            asked = asked.where(api_keys.c.client_id == client_id)
        if tenant is not None:
            asked = asked.where(clients.c.tenant == tenant)
        return [key_of(row) for row in await self._connection.execute(asked)]

    async def revoke(self, key_id: str, now: float) -> None:
        """One that is revoked keeps its first time."""
        await self._connection.execute(
            update(api_keys)
            .where(api_keys.c.key_id == key_id, api_keys.c.revoked_at.is_(None))
            .values(revoked_at=now)
        )

    async def used(self, key_id: str, now: float) -> None:
        """A token was issued for it."""
        await self._connection.execute(
            update(api_keys).where(api_keys.c.key_id == key_id).values(last_used_at=now)
        )

    async def revoked_since(self, since: float) -> list[str]:
        """The ids of keys revoked since then."""
        found = await self._connection.execute(
            select(api_keys.c.key_id).where(api_keys.c.revoked_at >= since)
        )
        return sorted(found.scalars())

    async def sealed(self, name: str) -> bytes | None:
        """The sealed secret of this name."""
        found = await self._connection.execute(
            select(sealed_secrets.c.sealed).where(sealed_secrets.c.name == name)
        )
        return found.scalar_one_or_none()

    async def all_sealed(self) -> dict[str, bytes]:
        """Every sealed secret, by name."""
        found = await self._connection.execute(
            select(sealed_secrets.c.name, sealed_secrets.c.sealed)
        )
        return {row.name: row.sealed for row in found}

    async def seal(self, name: str, sealed: bytes, now: float) -> None:
        """Keeps a sealed secret of a new name."""
        await self._connection.execute(
            insert(sealed_secrets).values(name=name, sealed=sealed, created_at=now)
        )

    async def replace_sealed(self, name: str, sealed: bytes) -> None:
        """The same secret, sealed anew."""
        await self._connection.execute(
            update(sealed_secrets).where(sealed_secrets.c.name == name).values(sealed=sealed)
        )


_SELECT = select(api_keys, clients.c.tenant).join(
    clients, clients.c.client_id == api_keys.c.client_id
)


def key_of(row: Row[tuple[object, ...]]) -> ApiKey:
    """The key of a row that has its client's tenant, too."""
    return ApiKey(
        key_id=row.key_id,
        client_id=row.client_id,
        display_name=row.display_name,
        scopes=listed(row.scopes),
        models=listed(row.models),
        secret_mac=row.secret_mac,
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
        tenant=row.tenant,
    )
