"""Secrets of the service itself, made once for a database and sealed in it."""

from __future__ import annotations

import secrets

from services.auth.store import Store
from services.auth.vault import Vault

PEPPER = "api-key-pepper"
AUDIT_KEY = "audit-key"
_BYTES = 32


async def sealed_secret(store: Store, vault: Vault, name: str, now: float) -> bytes:
    """The 32 random bytes of this name, the same on every replica; made when there are none.

    Raises Fault when the database is away, VaultError when it cannot be opened.
    """
    async with store.reading() as records:
        sealed = await records.keys.sealed(name)
    if sealed is None:
        async with store.alone() as records:
            sealed = await records.keys.sealed(name)
            if sealed is None:
                sealed = vault.seal(secrets.token_bytes(_BYTES), kid=name)
                await records.keys.seal(name, sealed, now)
    return vault.open(sealed, kid=name)
