"""Holds the signing keys of this replica, makes the next one in time and forgets dead ones.

The keys live in the store, shared by all replicas; the schedule is
core/rotation.py's. It signs nothing itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from services.auth.core import rotation
from services.auth.core.claims import AFTERLIFE
from services.auth.core.rotation import RotationPolicy
from services.auth.records import Records, StoredKey
from services.auth.store import Store
from services.auth.tokens import SigningKey, jwks_json, new_signing_key, signing_key
from services.auth.vault import Vault, VaultError
from services.chassis.audit.entry import Act
from services.chassis.errors import Fault

_log = logging.getLogger(__name__)


class Keyring:
    """The keys, opened. Load it once with `refresh` before asking it for anything."""

    def __init__(
        self, store: Store, vault: Vault, policy: RotationPolicy, clock: Callable[[], float]
    ) -> None:
        """`clock` returns unix seconds."""
        self._store = store
        self._vault = vault
        self._policy = policy
        self._clock = clock
        self._keys: dict[str, SigningKey] = {}
        self._jwks = jwks_json(())

    def signer(self) -> SigningKey:
        """The key that signs now. Raises LookupError before the first refresh."""
        key = rotation.signer(list(self._keys.values()), self._clock())
        if key is None:
            raise LookupError("no signing key is active")
        return key

    @property
    def jwks(self) -> str:
        """The public halves of all published keys as JSON text."""
        return self._jwks

    def holds(self, kids: Collection[str]) -> bool:
        """Whether these keys, and no others, are held here."""
        return self._keys.keys() == set(kids)

    async def learn(self) -> None:
        """As `refresh`, but a key that cannot be opened here leaves the keys that there are.

        Raises Fault when the database is away.
        """
        try:
            await self.refresh()
        except VaultError as unopened:
            _log.error("keys could not be refreshed", extra={"cause": str(unopened)})
            # What the database has no more may have been stolen: it goes all the same.
            async with self._store.reading() as records:
                stored = await records.signing_keys()
            self._hold([row for row in stored if row.kid in self._keys])

    async def refresh(self) -> None:
        """Learns what other replicas did, and makes or forgets keys that are due.

        Raises Fault when the database is away, VaultError when a key cannot be opened.
        """
        async with self._store.reading() as records:
            stored = await records.signing_keys()
        now = self._clock()
        if rotation.dead(stored, now) or self._due(stored, now) is not None:
            # Another replica may be here as well: decide again under the lock.
            async with self._store.alone() as records:
                stored = await records.signing_keys()
                gone = rotation.dead(stored, now)
                if gone:
                    await records.forget_signing_keys([key.kid for key in gone])
                    stored = [key for key in stored if key not in gone]
                active_at = self._due(stored, now)
                if active_at is not None:
                    made = await self._add(records, active_at)
                    stored.append(made)
                    if len(stored) > 1:
                        act = Act("signing-key.rotate", target=made.kid, details={"by": "schedule"})
                        await records.trail.append([act], now)
        self._hold(stored)

    async def rotate(self, records: Records) -> StoredKey:
        """Publishes the next key, to sign after the time that verifiers need to learn it; `learn`
        once the transaction is over.

        While one is already waiting, that one is returned: asking again cannot
        pile up keys. Only under the lock of all replicas.
        """
        now = self._clock()
        waiting = rotation.pending(await records.signing_keys(), now)
        return waiting or await self._add(records, now + self._policy.publish_ahead)

    async def replace_all(self, records: Records) -> tuple[StoredKey, list[str]]:
        """Removes every key, since they may be stolen, and publishes one that signs at once; and
        the ids of those that are gone. `learn` once the transaction is over.

        All tokens so far die with their keys. Only under the lock of all replicas.
        """
        gone = [key.kid for key in await records.signing_keys()]
        await records.forget_signing_keys(gone)
        fresh = await self._add(records, self._clock())
        _log.warning("every signing key was removed", extra={"kids": gone})
        return fresh, gone

    async def keep_fresh(self, every: float) -> None:
        """Refreshes each `every` seconds until cancelled, through outages of the database.

        A key that another replica sealed under a key-encryption key that this one was not told of
        leaves this one with the keys that it has.
        """
        while True:
            await asyncio.sleep(every)
            try:
                await self.learn()
                async with self._store.writing() as records:
                    await records.forget_revocations(self._clock() - 2 * AFTERLIFE)
            except Fault as fault:
                _log.warning("keys could not be refreshed", extra={"cause": fault.message})

    def _due(self, stored: list[StoredKey], now: float) -> float | None:
        return rotation.next_activation(stored, now, self._policy)

    async def _add(self, records: Records, active_at: float) -> StoredKey:
        key = new_signing_key(active_at)
        row = StoredKey(
            kid=key.kid,
            public_key=key.public_bytes,
            sealed_private_key=self._vault.seal(key.private_key.private_bytes_raw(), kid=key.kid),
            created_at=self._clock(),
            active_at=active_at,
        )
        await records.add_signing_key(row)
        _log.info("signing key published", extra={"kid": key.kid, "active_at": active_at})
        return row

    def _hold(self, stored: list[StoredKey]) -> None:
        self._keys = {row.kid: self._keys.get(row.kid) or self._opened(row) for row in stored}
        # Of the private keys, which are sealed: what else a row says anybody may have written who
        # can write the database.
        self._jwks = jwks_json(
            (row.kid, self._keys[row.kid].public_bytes, row.created_at)
            for row in rotation.in_order(stored)
        )

    def _opened(self, row: StoredKey) -> SigningKey:
        private = self._vault.open(row.sealed_private_key, kid=row.kid)
        return signing_key(row.kid, row.active_at, private)
