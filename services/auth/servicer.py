"""AuthService on the wire: messages to values and back. Every decision is made behind it.

The chassis has authenticated the caller and checked the method's scopes before
any method here runs. ExchangeApiKey, API keys and the audit trail are not built.
"""

from __future__ import annotations

import base64
import binascii
from typing import NoReturn, TypeAlias

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from anabranch.v1 import auth_pb2 as pb
from anabranch.v1 import auth_pb2_grpc, errors_pb2
from services.auth.core.claims import MAX_TOKEN_BYTES
from services.auth.core.clients import (
    Problem,
    display_name_problems,
    life_problems,
    name_problems,
    scope_problems,
)
from services.auth.directory import Directory, NewClient
from services.auth.grants import Grants, caller_of
from services.auth.keyring import Keyring
from services.auth.keyset import StoredKeySet
from services.auth.login import Login, refuse
from services.auth.records import Client
from services.chassis.authn import current_principal
from services.chassis.errors import Fault

_PAGE = 100
_LARGEST_PAGE = 1000

Context: TypeAlias = grpc.aio.ServicerContext


class AuthServicer(auth_pb2_grpc.AuthServiceServicer):
    """The RPCs; statuses are those of the contract."""

    def __init__(
        self,
        *,
        login: Login,
        grants: Grants,
        directory: Directory,
        keyring: Keyring,
        keyset: StoredKeySet,
        issuer: str,
        token_life: int,
    ) -> None:
        """`token_life` in seconds: what a client without a life of its own is shown with."""
        self._login = login
        self._grants = grants
        self._directory = directory
        self._keyring = keyring
        self._keyset = keyset
        self._issuer = issuer
        self._token_life = token_life

    async def IssueToken(
        self, request: pb.IssueTokenRequest, context: Context
    ) -> pb.IssueTokenResponse:
        client = await self._login.client(
            request.client_id,
            request.client_secret,
            grant_type=request.grant_type,
            problems=scope_problems("scopes", request.scopes),
        )
        issued = self._grants.issue(client, request.scopes)
        return pb.IssueTokenResponse(
            access_token=issued.access_token,
            token_type="Bearer",  # noqa: S106 - the kind of token, not a credential
            expires_in=Duration(seconds=issued.life),
            scopes=issued.scopes,
        )

    async def RevokeToken(
        self, request: pb.RevokeTokenRequest, context: Context
    ) -> pb.RevokeTokenResponse:
        refuse(_token_problems(request.token))
        await self._grants.revoke(request.token, caller_of(current_principal()))
        return pb.RevokeTokenResponse()

    async def IntrospectToken(
        self, request: pb.IntrospectTokenRequest, context: Context
    ) -> pb.IntrospectTokenResponse:
        refuse(_token_problems(request.token))
        live = await self._grants.live(request.token, caller_of(current_principal()))
        if live is None:
            return pb.IntrospectTokenResponse(active=False)
        principal = live.principal
        return pb.IntrospectTokenResponse(
            active=True,
            client_id=principal.client_id,
            tenant=principal.tenant,
            scopes=sorted(principal.scopes),
            issued_at=_timestamp(live.issued_at),
            expires_at=_timestamp(principal.expires_at),
            token_id=principal.token_id,
        )

    async def GetJwks(self, request: pb.GetJwksRequest, context: Context) -> pb.GetJwksResponse:
        found = await self._keyset.fetch()
        return pb.GetJwksResponse(
            jwks_json=found.jwks_json,
            max_age=_duration(found.max_age),
            revoked_token_ids=sorted(found.revoked_token_ids),
            disabled_client_ids=sorted(found.disabled_client_ids),
            issuer=self._issuer,
        )

    async def CreateClient(
        self, request: pb.CreateClientRequest, context: Context
    ) -> pb.CreateClientResponse:
        problems = name_problems("client_id", request.client_id) if request.client_id else []
        problems += name_problems("tenant", request.tenant)
        problems += display_name_problems("display_name", request.display_name)
        problems += scope_problems("scopes", request.scopes)
        if not request.scopes:
            problems.append(Problem("scopes", "must name at least one scope"))
        life = _life(request, problems)
        refuse(problems)
        new = NewClient(
            request.client_id, request.tenant, request.display_name, tuple(request.scopes), life
        )
        client, secret = await self._directory.create(new, current_principal().scopes)
        return pb.CreateClientResponse(client=self._info(client), client_secret=secret)

    async def ListClients(
        self, request: pb.ListClientsRequest, context: Context
    ) -> pb.ListClientsResponse:
        problems: list[Problem] = []
        if request.page_size < 0:
            problems.append(Problem("page_size", "must not be negative"))
        after = _read_page_token(request.page_token)
        if after is None:
            problems.append(Problem("page_token", "must be a next_page_token of this RPC"))
        refuse(problems)
        size = min(request.page_size or _PAGE, _LARGEST_PAGE)
        clients, more = await self._directory.page(after or "", size)
        return pb.ListClientsResponse(
            clients=[self._info(client) for client in clients],
            next_page_token=_page_token(clients[-1].client_id) if more else "",
        )

    async def UpdateClient(
        self, request: pb.UpdateClientRequest, context: Context
    ) -> pb.UpdateClientResponse:
        problems = name_problems("client_id", request.client_id)
        problems += display_name_problems("display_name", request.display_name)
        problems += scope_problems("scopes", request.scopes)
        life = _life(request, problems)
        refuse(problems)
        client = await self._directory.change(
            request.client_id,
            current_principal().scopes,
            display_name=request.display_name if request.HasField("display_name") else None,
            scopes=tuple(request.scopes),
            token_life=life,
        )
        return pb.UpdateClientResponse(client=self._info(client))

    async def DisableClient(
        self, request: pb.DisableClientRequest, context: Context
    ) -> pb.DisableClientResponse:
        refuse(name_problems("client_id", request.client_id))
        await self._directory.disable(request.client_id)
        return pb.DisableClientResponse()

    async def RotateClientSecret(
        self, request: pb.RotateClientSecretRequest, context: Context
    ) -> pb.RotateClientSecretResponse:
        refuse(name_problems("client_id", request.client_id))
        secret = await self._directory.replace_secret(request.client_id)
        return pb.RotateClientSecretResponse(client_secret=secret)

    async def RotateSigningKey(
        self, request: pb.RotateSigningKeyRequest, context: Context
    ) -> pb.RotateSigningKeyResponse:
        key = await self._keyring.rotate()
        self._keyset.changed()
        return pb.RotateSigningKeyResponse(kid=key.kid, active_at=_timestamp(key.active_at))

    async def ExchangeApiKey(self, request: pb.ExchangeApiKeyRequest, context: Context) -> NoReturn:
        raise _unsupported("api_keys")

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, context: Context) -> NoReturn:
        raise _unsupported("api_keys")

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, context: Context) -> NoReturn:
        raise _unsupported("api_keys")

    async def RevokeApiKey(self, request: pb.RevokeApiKeyRequest, context: Context) -> NoReturn:
        raise _unsupported("api_keys")

    async def QueryAudit(self, request: pb.QueryAuditRequest, context: Context) -> NoReturn:
        raise _unsupported("audit")

    def _info(self, client: Client) -> pb.ClientInfo:
        return pb.ClientInfo(
            client_id=client.client_id,
            tenant=client.tenant,
            display_name=client.display_name,
            scopes=client.scopes,
            token_life=Duration(seconds=client.token_life or self._token_life),
            disabled=client.disabled,
            created_at=_timestamp(client.created_at),
        )


def _unsupported(feature: str) -> Fault:
    return Fault(
        errors_pb2.ERROR_REASON_UNSUPPORTED,
        "this auth service does not offer this yet",
        metadata={"feature": feature},
    )


def _token_problems(token: str) -> list[Problem]:
    if not token:
        return [Problem("token", "is required")]
    if len(token) > MAX_TOKEN_BYTES:
        return [Problem("token", f"must be at most {MAX_TOKEN_BYTES} characters")]
    return []


def _life(
    request: pb.CreateClientRequest | pb.UpdateClientRequest, problems: list[Problem]
) -> int | None:
    """The token life that was asked for, in seconds; its problems join the others."""
    if not request.HasField("token_life"):
        return None
    life = request.token_life
    problems += life_problems("token_life", life.seconds * 1_000_000_000 + life.nanos)
    return int(life.seconds)


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _timestamp(unix_seconds: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(round(unix_seconds * 1e9))
    return timestamp


def _page_token(client_id: str) -> str:
    return base64.urlsafe_b64encode(client_id.encode()).decode()


def _read_page_token(token: str) -> str | None:
    """The client id after which to go on; None for a text that we did not make."""
    try:
        client_id = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    return client_id if not token or not name_problems("", client_id) else None
