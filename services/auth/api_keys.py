"""Makes, exchanges and revokes API keys. Only a keyed hash of a key's secret part is stored.

The pepper of the hash is sealed in the database: a copy of the database alone checks no guess.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from anabranch.api_keys import (
    BASE62,
    PUBLIC_ID_ALPHABET,
    PUBLIC_ID_LENGTH,
    SECRET_LENGTH,
    compose,
    is_well_formed,
    public_id,
    secret_part,
)
from anabranch.v1 import errors_pb2
from services.auth.acts import Acts
from services.auth.authority import Authority
from services.auth.entitlements import Entitlement, of_client
from services.auth.grants import Grants, IssuedToken
from services.auth.key_records import ApiKey
from services.auth.keyset import StoredKeySet
from services.auth.login import wrong_login
from services.auth.records import Client
from services.auth.store import Store
from services.chassis.audit.entry import Act
from services.chassis.errors import Fault
from services.chassis.model_patterns import beyond

REFUSED_AFTER_S = 0.01
"""A refusal leaves so long after the question came, whatever was looked up in between, or a whole
number of times as long where that took longer: how long it takes says nothing of what is stored."""

_USED_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to make; `life` in seconds or None for one that ends only by being revoked."""

    client_id: str
    display_name: str
    scopes: Sequence[str]
    models: Sequence[str]
    life: int | None


class ApiKeys:
    """The API keys of the organisation."""

    def __init__(
        self,
        store: Store,
        acts: Acts,
        grants: Grants,
        keyset: StoredKeySet,
        pepper: bytes,
        *,
        clock: Callable[[], float],
    ) -> None:
        """`clock` returns unix seconds."""
        self._store = store
        self._acts = acts
        self._grants = grants
        self._keyset = keyset
        self._pepper = pepper
        self._clock = clock

    async def create(self, new: NewKey, authority: Authority, act: Act) -> tuple[ApiKey, str]:
        """The key as stored, and the whole key. Raises Fault: ACCESS_DENIED, NOT_FOUND."""
        key_id = "".join(secrets.choice(PUBLIC_ID_ALPHABET) for _ in range(PUBLIC_ID_LENGTH))
        # 62**43 is more than 2**256, of which every bit is random.
        secret = "".join(secrets.choice(BASE62) for _ in range(SECRET_LENGTH))
        now = self._clock()
        async with self._acts.changing(act, authority) as change:
            authority = change.authority
            client = await change.records.client(new.client_id)
            if client is None:
                raise authority.no_such("client", client_id=new.client_id)
            held = of_client(client, change.roles)
            _check_within(held, client.tenant, new, authority)
            key = ApiKey(
                key_id=key_id,
                client_id=client.client_id,
                display_name=new.display_name,
                # Written down even if it is all: what the client gets later is not the key's.
                scopes=tuple(sorted(set(new.scopes or held.scopes))),
                models=tuple(sorted(set(new.models or held.models))),
                secret_mac=self._mac(key_id, secret),
                created_by=authority.client_id,
                created_at=now,
                expires_at=None if new.life is None else now + new.life,
                tenant=client.tenant,
            )
            await change.records.keys.add(key)
            change.concerns(tenant=client.tenant, target=key_id)
        return key, compose(key_id, secret)

    async def exchange(self, api_key: str) -> str:
        """A token for the key, see KeyExchange of the chassis. Raises Fault."""
        return (await self.issue(api_key)).access_token

    async def issue(self, api_key: str, peer: str = "") -> IssuedToken:
        """A token for the key.

        Raises Fault: CREDENTIAL_REJECTED with one text and after one time for every key that is
        not good, DEPENDENCY_UNAVAILABLE.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        found = None
        if is_well_formed(api_key):
            found = await self._good(api_key)
        if found is None:
            known = public_id(api_key) if is_well_formed(api_key) else ""
            refusal = Act("key.exchange", target=known, succeeded=False, peer=peer)
            self._acts.note_stranger(refusal)
            await asyncio.sleep(refused_in(loop.time() - began))
            raise wrong_login()
        key, client = found
        issued = self._grants.issue(client, (), key=key)
        act = Act("key.exchange", client.client_id, client.tenant, key.key_id, peer=peer)
        self._acts.note(act)
        return issued

    async def page(
        self, after: str, size: int, authority: Authority, client_id: str
    ) -> tuple[list[ApiKey], bool]:
        """Keys whose id comes after this one, and whether there are more."""
        async with self._store.reading() as records:
            found = await records.keys.after(
                after, size + 1, client_id=client_id, tenant=authority.own_tenant
            )
        return found[:size], len(found) > size

    async def revoke(self, key_id: str, authority: Authority, act: Act) -> None:
        """Ends a key, and every token that was issued for it. Raises Fault."""
        async with self._acts.changing(act, authority) as change:
            authority = change.authority
            key = await change.records.keys.key(key_id)
            if key is None:
                raise authority.no_such("API key", key_id=key_id)
            client = await change.records.client(key.client_id)
            held = Entitlement((), ())
            if client is not None:
                held = of_client(client, change.roles)
            authority.check_manages(key.tenant, held)
            await change.records.keys.revoke(key_id, self._clock())
            change.concerns(tenant=key.tenant)
        self._keyset.changed()

    async def _good(self, api_key: str) -> tuple[ApiKey, Client] | None:
        """The key and its client, if all is well with both."""
        key_id = public_id(api_key)
        async with self._store.reading() as records:
            found = await records.key_and_client(key_id)
        key, client = (None, None) if found is None else found
        # Compared on a miss, too: with a hash that no secret has.
        expected = key.secret_mac if key is not None else bytes(32)
        right = hmac.compare_digest(self._mac(key_id, secret_part(api_key)), expected)
        now = self._clock()
        if key is None or client is None or not right:
            return None
        expired = key.expires_at is not None and key.expires_at <= now
        if expired or key.revoked_at is not None or client.disabled:
            return None
        if key.last_used_at is None or now - key.last_used_at > _USED_EVERY_S:
            async with self._store.writing() as records:
                await records.keys.used(key_id, now)
        return key, client

    def _mac(self, key_id: str, secret: str) -> bytes:
        return hmac.new(self._pepper, f"{key_id}|{secret}".encode(), hashlib.sha256).digest()


def refused_in(taken: float) -> float:
    """How long a refusal still waits that has taken so long, in seconds."""
    return max(math.ceil(taken / REFUSED_AFTER_S), 1) * REFUSED_AFTER_S - taken


def _check_within(held: Entitlement, tenant: str, new: NewKey, authority: Authority) -> None:
    """A key gives no more than its client has, nor than its creator has."""
    authority.check_manages(tenant, held)
    missing = sorted(set(new.scopes) - set(held.scopes))
    missing += [f"model {name}" for name in beyond(held.models, new.models)]
    if missing:
        raise Fault(
            errors_pb2.ERROR_REASON_ACCESS_DENIED,
            f"the client does not have: {', '.join(missing)}",
        )
