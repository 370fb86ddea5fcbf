"""Tokens and the keys that verify them, on the wire."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import grpc

from anabranch.api_keys import looks_like_key
from anabranch.v1 import auth_pb2 as pb
from services.auth.acts import Acts
from services.auth.api_keys import ApiKeys
from services.auth.authority import authority_of
from services.auth.core.claims import MAX_TOKEN_BYTES
from services.auth.core.clients import Problem, scope_problems
from services.auth.grants import Caller, Grants
from services.auth.keyring import Keyring
from services.auth.keyset import LONGEST_WAIT_S, StoredKeySet
from services.auth.login import Login, refuse
from services.auth.login_metrics import API_KEY, CLIENT_SECRET, Logins
from services.auth.rpcs.wire import act, duration, nanoseconds, peer, timestamp
from services.chassis.principal import current_principal

Context: TypeAlias = grpc.aio.ServicerContext
_BEARER = "Bearer"
_LONGEST_KEY = 256


class TokenRpcs:
    """IssueToken, ExchangeApiKey, RevokeToken, IntrospectToken, GetJwks and RotateSigningKey."""

    def __init__(
        self,
        *,
        login: Login,
        acts: Acts,
        grants: Grants,
        api_keys: ApiKeys,
        keyring: Keyring,
        keyset: StoredKeySet,
        issuer: str,
        logins: Logins,
    ) -> None:
        self._logins = logins
        self._login = login
        self._acts = acts
        self._grants = grants
        self._api_keys = api_keys
        self._keyring = keyring
        self._keyset = keyset
        self._issuer = issuer

    async def IssueToken(
        self, request: pb.IssueTokenRequest, context: Context
    ) -> pb.IssueTokenResponse:
        with self._logins.counted(CLIENT_SECRET):
            client = await self._login.client(
                request.client_id,
                request.client_secret,
                peer=peer(),
                grant_type=request.grant_type,
                problems=scope_problems("scopes", request.scopes),
            )
            issued = self._grants.issue_at_login(client, request.scopes, peer=peer())
        return pb.IssueTokenResponse(
            access_token=issued.access_token,
            token_type=_BEARER,
            expires_in=duration(issued.life),
            scopes=issued.scopes,
        )

    async def ExchangeApiKey(
        self, request: pb.ExchangeApiKeyRequest, context: Context
    ) -> pb.ExchangeApiKeyResponse:
        problems: list[Problem] = []
        if not request.api_key:
            problems.append(Problem("api_key", "is required"))
        elif len(request.api_key) > _LONGEST_KEY:
            problems.append(Problem("api_key", f"must be at most {_LONGEST_KEY} characters"))
        with self._logins.counted(API_KEY):
            refuse(problems)
            issued = await self._api_keys.issue(request.api_key, peer())
        return pb.ExchangeApiKeyResponse(
            access_token=issued.access_token,
            token_type=_BEARER,
            expires_in=duration(issued.life),
            scopes=issued.scopes,
        )

    async def RevokeToken(
        self, request: pb.RevokeTokenRequest, context: Context
    ) -> pb.RevokeTokenResponse:
        problems = _token_problems(request.token)
        if looks_like_key(request.token):
            problems.append(Problem("token", "is an API key, which RevokeApiKey ends"))
        refuse(problems)
        await self._grants.revoke(request.token, _caller())
        return pb.RevokeTokenResponse()

    async def IntrospectToken(
        self, request: pb.IntrospectTokenRequest, context: Context
    ) -> pb.IntrospectTokenResponse:
        refuse(_token_problems(request.token))
        live = await self._grants.live(request.token, _caller())
        if live is None:
            return pb.IntrospectTokenResponse(active=False)
        principal = live.principal
        return pb.IntrospectTokenResponse(
            active=True,
            client_id=principal.client_id,
            tenant=principal.tenant,
            scopes=sorted(principal.scopes),
            issued_at=timestamp(live.issued_at),
            expires_at=timestamp(principal.expires_at),
            token_id=principal.token_id,
        )

    async def GetJwks(self, request: pb.GetJwksRequest, context: Context) -> pb.GetJwksResponse:
        wait = nanoseconds(request.wait) / 1e9
        if not 0 <= wait <= LONGEST_WAIT_S:
            refuse([Problem("wait", f"must be from 0 to {LONGEST_WAIT_S:g} s")])
        found = await self._keyset.fetch(request.known_version, wait)
        return pb.GetJwksResponse(
            jwks_json=found.jwks_json,
            max_age=duration(found.max_age),
            revoked_token_ids=sorted(found.revoked_token_ids),
            disabled_client_ids=sorted(found.disabled_client_ids),
            issuer=self._issuer,
            revoked_api_key_ids=sorted(found.revoked_api_key_ids),
            version=found.version,
        )

    async def RotateSigningKey(
        self, request: pb.RotateSigningKeyRequest, context: Context
    ) -> pb.RotateSigningKeyResponse:
        authority = authority_of(current_principal())
        done = act("signing-key.replace" if request.compromised else "signing-key.rotate")
        async with self._acts.changing(done, authority) as change:
            change.authority.check_everywhere()
            if request.compromised:
                key, gone = await self._keyring.replace_all(change.records)
                details = {**change.act.details, "removed": " ".join(gone)}
                change.act = replace(change.act, details=details)
            else:
                key = await self._keyring.rotate(change.records)
            change.act = replace(change.act, target=key.kid)
        await self._keyring.learn()
        self._keyset.changed()
        return pb.RotateSigningKeyResponse(kid=key.kid, active_at=timestamp(key.active_at))


def _caller() -> Caller:
    principal = current_principal()
    return Caller(authority_of(principal), peer())


def _token_problems(token: str) -> list[Problem]:
    if not token:
        return [Problem("token", "is required")]
    if len(token) > MAX_TOKEN_BYTES:
        return [Problem("token", f"must be at most {MAX_TOKEN_BYTES} characters")]
    return []
