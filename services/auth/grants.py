"""Issues, revokes and describes access tokens: the OAuth side of the service.

gRPC (servicer.py) and HTTP (oauth_http.py) are two thin shells around it. Who a
caller is has been settled before: by login.py, or by the chassis's guard.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from anabranch.api_keys import looks_like_key
from anabranch.v1 import errors_pb2
from services.auth.acts import Acts, refused
from services.auth.authority import Authority
from services.auth.core.claims import Limits, claims_for
from services.auth.entitlements import Entitlement, of_client, of_key, rules_for
from services.auth.key_records import ApiKey
from services.auth.keyring import Keyring
from services.auth.keyset import StoredKeySet
from services.auth.records import Client
from services.auth.rulebook import Rulebook
from services.auth.store import Store
from services.auth.tokens import TokenTooLarge, issued_at, sign
from services.chassis.audit.entry import Act
from services.chassis.authn import Verifier
from services.chassis.errors import Fault
from services.chassis.principal import Principal

MOST_REVOCATIONS = 1000
"""So many live tokens of one client may be revoked at the same time."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks about a token, and from where."""

    authority: Authority
    peer: str = ""

    @property
    def client_id(self) -> str:
        """Its id."""
        return self.authority.client_id

    @property
    def administrator(self) -> bool:
        """Whether tokens of others are its business."""
        return self.authority.everywhere


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
        acts: Acts,
        keyring: Keyring,
        keyset: StoredKeySet,
        rulebook: Rulebook,
        *,
        issuer: str,
        audience: str,
        token_life: int,
        clock: Callable[[], float],
    ) -> None:
        """`token_life` in seconds, for clients without one of their own; `clock` unix seconds."""
        self._store = store
        self._acts = acts
        self._keyring = keyring
        self._keyset = keyset
        self._rulebook = rulebook
        self._issuer = issuer
        self._audience = audience
        self._token_life = token_life
        self._clock = clock

    def issue_at_login(self, client: Client, scopes: Sequence[str], *, peer: str) -> IssuedToken:
        """As `issue`, to a client that has just logged in; given or refused, it is written down."""
        act = Act("token.issue", client.client_id, client.tenant, client.client_id, peer=peer)
        try:
            issued = self.issue(client, scopes)
        except Fault as fault:
            self._acts.note(refused(act, fault))
            raise
        self._acts.note(act)
        return issued

    def issue(
        self, client: Client, scopes: Sequence[str], *, key: ApiKey | None = None
    ) -> IssuedToken:
        """A token with these scopes, or with all of the client's when none is named.

        With `key` it gives no more than that API key, and for no longer. Raises Fault:
        ACCESS_DENIED for a scope that the client does not have, TOO_LARGE when its limits do not
        fit into a token.
        """
        held = of_client(client, self._rulebook.now.roles)
        if key is not None:
            held = of_key(key, held)
        missing = sorted(set(scopes) - set(held.scopes))
        if missing:
            raise Fault(
                errors_pb2.ERROR_REASON_ACCESS_DENIED,
                f"the client does not have: {', '.join(missing)}",
            )
        now, life = self._clock(), client.token_life or self._token_life
        if key is not None and key.expires_at is not None:
            life = min(life, max(1, int(key.expires_at) - int(now)))
        claims = claims_for(
            issuer=self._issuer,
            audience=self._audience,
            client_id=client.client_id,
            tenant=client.tenant,
            scopes=scopes or held.scopes,
            token_id=secrets.token_urlsafe(16),
            now=now,
            life=life,
            limits=self._limits(client, held, key),
        )
        try:
            token = sign(claims, self._keyring.signer())
        except TokenTooLarge:
            raise Fault(
                errors_pb2.ERROR_REASON_TOO_LARGE,
                "the client's models, networks and quotas do not fit into one token; "
                "shorten them, or use patterns",
                metadata={"client_id": client.client_id},
            ) from None
        return IssuedToken(token, claims.expires_at - claims.issued_at, claims.scopes)

    def _limits(self, client: Client, held: Entitlement, key: ApiKey | None) -> Limits:
        rules = self._rulebook.now
        tenant = rules.tenant(client.tenant)
        return Limits(
            models=held.models,
            networks=client.networks,
            quotas=tuple(
                rule.as_text() for rule in rules_for(rules.quotas, client.tenant, client.client_id)
            ),
            api_key_id="" if key is None else key.key_id,
            audit_detail=tenant.audit_detail,
            cipher=tenant.cipher,
        )

    def caller(self, client: Client, peer: str) -> Caller:
        """A client that has logged in, as one who asks about tokens."""
        held = of_client(client, self._rulebook.now.roles)
        return Caller(Authority(client.client_id, client.tenant, held), peer)

    def verifies_with(self, verifier: Verifier) -> None:
        """The process's own verifier, which can be made only once tokens can be issued here."""
        self._verifier = verifier

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
            if principal.api_key_id:
                key = await records.keys.key(principal.api_key_id)
                revoked = revoked or key is None or key.revoked_at is not None
        if revoked or client is None or client.disabled:
            return None
        return LiveToken(principal, issued_at(token))

    async def revoke(self, token: str, caller: Caller) -> None:
        """Ends a token everywhere; a dead one needs no ending.

        Raises Fault: ACCESS_DENIED for a live token of another client, QUOTA_EXCEEDED when very
        many of the client's are revoked already: every verifier must know each of them.
        """
        principal = await self._verified(token)
        if principal is None:
            return
        _check_own(principal, caller.authority)
        act = Act(
            "token.revoke", caller.client_id, principal.tenant, principal.token_id, peer=caller.peer
        )
        async with self._acts.changing(act, caller.authority) as change:
            _check_own(principal, change.authority)
            records, own = change.records, principal.client_id
            if await records.revocations_of(own, self._clock()) >= MOST_REVOCATIONS:
                raise Fault(
                    errors_pb2.ERROR_REASON_QUOTA_EXCEEDED,
                    "too many of the client's tokens are revoked; disable the client instead",
                    retry_after=60.0,
                    quota=[(f"client:{own}", "revoked tokens that have not ended")],
                )
            await records.revoke_token(principal.token_id, own, principal.expires_at)
        self._keyset.changed()

    async def _verified(self, token: str) -> Principal | None:
        if looks_like_key(token):
            return None  # the verifier would take it, for a token that nobody asks about
        try:
            return await self._verifier.verify(token)
        except Fault as fault:
            if fault.reason == errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED:
                return None
            raise


def _check_own(principal: Principal, authority: Authority) -> None:
    """Raises Fault ACCESS_DENIED for a token of another client."""
    if not authority.everywhere and principal.client_id != authority.client_id:
        raise Fault(errors_pb2.ERROR_REASON_ACCESS_DENIED, "only its own client may revoke a token")
