"""Moves the secrets of the database under the current key-encryption key, at the start.

Not while it runs: replicas that are told of a rotation one after the other would undo each other's
work. The last one that starts leaves everything under the key that it was told of.
"""

from __future__ import annotations

import logging

from services.auth.records import Records
from services.auth.store import Store
from services.auth.vault import Vault

_log = logging.getLogger(__name__)


async def reseal(store: Store, vault: Vault) -> int:
    """Re-seals what is under another key or in an earlier form; returns how many there were.

    Raises Fault when the database is away, VaultError when a key cannot be opened; then nothing
    has changed.
    """
    async with store.reading() as records:
        if not await _outdated(records, vault):
            return 0
    # Another replica may be here as well: look again under the lock.
    async with store.alone() as records:
        outdated = await _outdated(records, vault)
        secrets = await records.keys.all_sealed()
        for name, sealed in outdated.items():
            again = vault.resealed(sealed, kid=name)
            if name in secrets:
                await records.keys.replace_sealed(name, again)
            else:
                await records.replace_sealed_key(name, again)
    if outdated:
        _log.info("secrets are sealed anew", extra={"names": sorted(outdated)})
    return len(outdated)


async def _outdated(records: Records, vault: Vault) -> dict[str, bytes]:
    """Signing keys by kid and other secrets by name; a kid is a hash, so none has both."""
    found = {row.kid: row.sealed_private_key for row in await records.signing_keys()}
    found |= await records.keys.all_sealed()
    return {name: sealed for name, sealed in found.items() if not vault.is_current(sealed)}
