"""What every verifier is told: public keys, revoked tokens and disabled clients.

Auth's own verifier reads it here directly; the others through GetJwks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.auth.core.claims import AFTERLIFE, MAX_TOKEN_LIFE
from services.auth.keyring import Keyring
from services.auth.store import Store
from services.chassis.authn import KeySet

_SHARED_FOR = 0.25


class StoredKeySet:
    """The key set of this moment, a KeySource of the chassis.

    Verifiers poll every second or so and there may be hundreds: an answer is
    shared for a quarter of a second, so polls cost the database at most four
    reads a second. What this replica itself revokes is seen at once.
    """

    def __init__(
        self,
        store: Store,
        keyring: Keyring,
        *,
        max_age: float,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        """`max_age` in seconds; `clock` returns unix seconds."""
        self._store = store
        self._keyring = keyring
        self._max_age = max_age
        self._clock = clock
        self._monotonic = monotonic
        self._lock = asyncio.Lock()
        self._shared: tuple[float, KeySet] | None = None
        self._changes = 0

    async def fetch(self) -> KeySet:
        """Raises Fault when the database is away; verifiers then keep what they have."""
        async with self._lock:
            now = self._monotonic()
            if self._shared is not None and now - self._shared[0] < _SHARED_FOR:
                return self._shared[1]
            changes = self._changes
            found = await self._read()
            # A revocation that was written during the read may be missing from it.
            self._shared = (now, found) if changes == self._changes else None
            return found

    def changed(self) -> None:
        """Told after each revocation and each new key of this replica."""
        self._changes += 1
        self._shared = None

    async def _read(self) -> KeySet:
        now = self._clock()
        async with self._store.reading() as records:
            revoked = await records.revoked_tokens(now - AFTERLIFE)
            # Tokens of a client that was disabled earlier are dead of age.
            disabled = await records.clients_disabled_since(now - MAX_TOKEN_LIFE - AFTERLIFE)
        return KeySet(
            jwks_json=self._keyring.jwks,
            max_age=self._max_age,
            revoked_token_ids=frozenset(revoked),
            disabled_client_ids=frozenset(disabled),
        )
