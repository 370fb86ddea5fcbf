"""API keys, on the wire. Exchanging one is among the tokens (tokens.py)."""

from __future__ import annotations

import re
from typing import TypeAlias

import grpc

from anabranch.v1 import auth_pb2 as pb
from services.auth.api_keys import ApiKeys, NewKey
from services.auth.authority import authority_of
from services.auth.checks import key_life_problems, model_problems
from services.auth.core.clients import (
    Problem,
    display_name_problems,
    name_problems,
    scope_problems,
)
from services.auth.key_records import ApiKey
from services.auth.login import refuse
from services.auth.rpcs.wire import (
    act,
    nanoseconds,
    page_of,
    page_token,
    timestamp,
    whole_seconds,
)
from services.chassis.principal import current_principal

Context: TypeAlias = grpc.aio.ServicerContext
_KEY_ID = re.compile(r"[0-9a-z]{16}")


class ApiKeyRpcs:
    """CreateApiKey, ListApiKeys and RevokeApiKey."""

    def __init__(self, api_keys: ApiKeys) -> None:
        self._api_keys = api_keys

    async def CreateApiKey(
        self, request: pb.CreateApiKeyRequest, context: Context
    ) -> pb.CreateApiKeyResponse:
        problems = name_problems("client_id", request.client_id)
        problems += display_name_problems("display_name", request.display_name)
        problems += scope_problems("scopes", request.scopes)
        problems += model_problems("models", request.models)
        life = None
        if request.HasField("life"):
            problems += key_life_problems("life", nanoseconds(request.life))
            life = whole_seconds(request.life)
        refuse(problems)
        new = NewKey(
            request.client_id,
            request.display_name,
            tuple(request.scopes),
            tuple(request.models),
            life,
        )
        key, text = await self._api_keys.create(
            new,
            authority_of(current_principal()),
            act(
                "api-key.create",
                client=request.client_id,
                scopes=request.scopes,
                models=request.models,
                life=life,
            ),
        )
        return pb.CreateApiKeyResponse(info=_info(key), api_key=text)

    async def ListApiKeys(
        self, request: pb.ListApiKeysRequest, context: Context
    ) -> pb.ListApiKeysResponse:
        problems = name_problems("client_id", request.client_id) if request.client_id else []
        after, size = page_of(request.page_size, request.page_token, problems)
        refuse(problems)
        keys, more = await self._api_keys.page(
            after, size, authority_of(current_principal()), request.client_id
        )
        return pb.ListApiKeysResponse(
            keys=[_info(key) for key in keys],
            next_page_token=page_token(keys[-1].key_id) if more else "",
        )

    async def RevokeApiKey(
        self, request: pb.RevokeApiKeyRequest, context: Context
    ) -> pb.RevokeApiKeyResponse:
        if _KEY_ID.fullmatch(request.key_id) is None:
            refuse([Problem("key_id", "must be the 16 characters of a key's public id")])
        await self._api_keys.revoke(
            request.key_id,
            authority_of(current_principal()),
            act("api-key.revoke", request.key_id),
        )
        return pb.RevokeApiKeyResponse()


def _info(key: ApiKey) -> pb.ApiKeyInfo:
    info = pb.ApiKeyInfo(
        key_id=key.key_id,
        client_id=key.client_id,
        scopes=key.scopes,
        created_at=timestamp(key.created_at),
        revoked=key.revoked_at is not None,
        tenant=key.tenant,
        display_name=key.display_name,
        models=key.models,
        created_by=key.created_by,
    )
    if key.expires_at is not None:
        info.expires_at.CopyFrom(timestamp(key.expires_at))
    if key.last_used_at is not None:
        info.last_used_at.CopyFrom(timestamp(key.last_used_at // 60 * 60))
    return info
