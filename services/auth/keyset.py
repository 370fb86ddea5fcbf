"""What every verifier is told: public keys, revoked tokens and disabled clients.

Auth's own verifier reads it here directly; the others through GetJwks.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable

from services.auth.core.claims import AFTERLIFE, MAX_TOKEN_LIFE
from services.auth.keyring import Keyring
from services.auth.store import Store
from services.chassis.authn import KeySet

LONGEST_WAIT_S = 30.0
"""Nobody is kept waiting for a change for longer."""

_SHARED_FOR = 0.25
# How late this replica may notice what another one revoked, for those who wait here.
_LOOK_EVERY_S = 0.5
# Each holds a call's place. Those beyond are answered at once, and come again after max_age.
_MOST_WAITING = 500


class StoredKeySet:
    """The key set of this moment, a KeySource of the chassis.

    Verifiers wait here for the next change, and there may be hundreds: an answer is shared for a
    quarter of a second, so they cost the database at most four reads a second. Of what this
    replica itself revokes they hear at once, of what another one does within half a second.
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
        self._changed = asyncio.Event()
        self._waiting = 0
        self._closing = False

    async def fetch(self, known_version: str = "", wait: float = 0.0) -> KeySet:
        """See KeySource. Raises Fault when the database is away; verifiers keep what they have."""
        until = self._monotonic() + min(wait, LONGEST_WAIT_S)
        found = await self._shared_read()
        if not known_version or self._waiting >= _MOST_WAITING:
            return found
        self._waiting += 1
        try:
            while found.version == known_version and not self._closing:
                left = until - self._monotonic()
                if left <= 0:
                    break
                await self._change_within(min(left, _LOOK_EVERY_S))
                found = await self._shared_read()
        finally:
            self._waiting -= 1
        return found

    def changed(self) -> None:
        """Told after each revocation and each new key of this replica."""
        self._changes += 1
        self._shared = None
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def close(self) -> None:
        """Whoever waits for a change is answered now."""
        self._closing = True
        self._changed.set()

    async def _change_within(self, seconds: float) -> None:
        """Returns when this replica changed something, or so much later."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass  # another replica may have

    async def _shared_read(self) -> KeySet:
        async with self._lock:
            now = self._monotonic()
            if self._shared is not None and now - self._shared[0] < _SHARED_FOR:
                return self._shared[1]
            changes = self._changes
            found = await self._read()
            # A revocation that was written during the read may be missing from it.
            self._shared = (now, found) if changes == self._changes else None
            return found

    async def _read(self) -> KeySet:
        now = self._clock()
        # Tokens of what was ended earlier are dead of age.
        since = now - MAX_TOKEN_LIFE - AFTERLIFE
        async with self._store.reading() as records:
            revoked = await records.revoked_tokens(now - AFTERLIFE)
            disabled = await records.clients_disabled_since(since)
            keys = await records.keys.revoked_since(since)
            kids = await records.signing_kids()
        if not self._keyring.holds(kids):
            # Another replica made or removed some: not only in its own time is that learnt here.
            await self._keyring.learn()
        jwks = self._keyring.jwks
        return KeySet(
            jwks_json=jwks,
            max_age=self._max_age,
            revoked_token_ids=frozenset(revoked),
            disabled_client_ids=frozenset(disabled),
            revoked_api_key_ids=frozenset(keys),
            version=_version(jwks, revoked, disabled, keys),
        )


def _version(*parts: object) -> str:
    """The same for the same content, on every replica."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
