"""Moves the signing keys of the database under the current key-encryption key, at the start.

Not while it runs: replicas that are told of a rotation one after the other would undo each other's
work. The last one that starts leaves everything under the key that it was told of.
"""

from __future__ import annotations

import logging

from services.auth.records import StoredKey
from services.auth.store import Store
from services.auth.vault import Vault

_log = logging.getLogger(__name__)


async def reseal(store: Store, vault: Vault) -> int:
    """Re-seals what is under another key or in an earlier form; returns how many there were.

    Raises Fault when the database is away, VaultError when a key cannot be opened; then nothing
    has changed.
    """
    async with store.reading() as records:
        if not _outdated(await records.signing_keys(), vault):
            return 0
    # Another replica may be here as well: look again under the lock.
    async with store.alone() as records:
        outdated = _outdated(await records.signing_keys(), vault)
        for row in outdated:
            sealed = vault.resealed(row.sealed_private_key, kid=row.kid)
            await records.replace_sealed_key(row.kid, sealed)
    if outdated:
        _log.info("signing keys are sealed anew", extra={"kids": [row.kid for row in outdated]})
    return len(outdated)


def _outdated(stored: list[StoredKey], vault: Vault) -> list[StoredKey]:
    return [row for row in stored if not vault.is_current(row.sealed_private_key)]
