"""Issues, revokes and describes access tokens: the OAuth side of the service.

gRPC (servicer.py) and HTTP (oauth_http.py) are two thin shells around it. Who a
caller is has been settled before: by login.py, or by the chassis's guard.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from anabranch.v1 import errors_pb2
from services.auth.core.claims import claims_for
from services.auth.core.clients import ADMIN
from services.auth.keyring import Keyring
from services.auth.keyset import StoredKeySet
from services.auth.records import Client
from services.auth.store import Store
from services.auth.tokens import issued_at, sign
from services.chassis.authn import Principal, Verifier
from services.chassis.errors import Fault


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks about a token, and whether tokens of others are its business."""

    client_id: str
    administrator: bool


def caller_of(identity: Principal | Client) -> Caller:
    return Caller(identity.client_id, ADMIN in identity.scopes)


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A signed token and what it grants; `life` in seconds."""

    access_token: str
    life: int
    scopes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"IssuedToken(life={self.life}, scopes={self.scopes!r})"


@dataclass(frozen=True, slots=True)
class LiveToken:
    """What a live token is worth; `issued_at` in unix seconds."""

    principal: Principal
    issued_at: int


class Grants:
    """The access tokens of this issuer."""

    def __init__(
        self,
        store: Store,
        keyring: Keyring,
        keyset: StoredKeySet,
        verifier: Verifier,
        *,
        issuer: str,
        audience: str,
        token_life: int,
        clock: Callable[[], float],
    ) -> None:
        """`token_life` in seconds, for clients without one of their own; `clock` unix seconds."""
        self._store = store
        self._keyring = keyring
        self._keyset = keyset
        self._verifier = verifier
        self._issuer = issuer
        self._audience = audience
        self._token_life = token_life
        self._clock = clock

    def issue(self, client: Client, scopes: Sequence[str]) -> IssuedToken:
        """A token with these scopes, or with all of the client's when none is named.

        Raises Fault (ACCESS_DENIED) for a scope that the client does not have.
        """
        missing = sorted(set(scopes) - set(client.scopes))
        if missing:
            raise Fault(
                errors_pb2.ERROR_REASON_ACCESS_DENIED,
                f"the client does not have: {', '.join(missing)}",
            )
        claims = claims_for(
            issuer=self._issuer,
            audience=self._audience,
            client_id=client.client_id,
            tenant=client.tenant,
            scopes=scopes or client.scopes,
            token_id=secrets.token_urlsafe(16),
            now=self._clock(),
            life=client.token_life or self._token_life,
        )
        token = sign(claims, self._keyring.signer())
        return IssuedToken(token, claims.expires_at - claims.issued_at, claims.scopes)

    async def live(self, token: str, caller: Caller) -> LiveToken | None:
        """What a live token grants; None for a dead one, or one that is not the caller's business.

        The store is asked, so an answer is never behind a revocation.
        Raises Fault when the database is away.
        """
        principal = await self._verified(token)
        if principal is None:
            return None
        if not caller.administrator and principal.client_id != caller.client_id:
            return None
        async with self._store.reading() as records:
            client = await records.client(principal.client_id)
            revoked = await records.is_revoked(principal.token_id)
        if revoked or client is None or client.disabled:
            return None
        return LiveToken(principal, issued_at(token))

    async def revoke(self, token: str, caller: Caller) -> None:
        """Ends a token everywhere; a dead one needs no ending.

        Raises Fault (ACCESS_DENIED) for a live token of another client.
        """
        principal = await self._verified(token)
        if principal is None:
            return
        if not caller.administrator and principal.client_id != caller.client_id:
            raise Fault(
                errors_pb2.ERROR_REASON_ACCESS_DENIED, "only its own client may revoke a token"
            )
        async with self._store.writing() as records:
            await records.revoke_token(
                principal.token_id, principal.client_id, principal.expires_at
            )
        self._keyset.changed()

    async def _verified(self, token: str) -> Principal | None:
        try:
            return await self._verifier.verify(token)
        except Fault as fault:
            if fault.reason == errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED:
                return None
            raise
