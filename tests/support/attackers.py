"""Clients and API keys of a running auth service, and the ways in which an attacker asks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import aiohttp
import grpc
from google.protobuf.message import Message

from anabranch.api_keys import compose, public_id
from anabranch.v1 import auth_pb2 as pb
from services.chassis.errors import Fault, fault_from_rpc_error
from tests.support.auth import Front, basic, bearer
from tests.support.raw_http2 import message, peer, request

OTHER_SECRET = "0" * 43
Fields = list[tuple[str, str]]


async def created(front: Front, client_id: str, *, by: str = "", **given: Any) -> str:
    """A client's secret; `by` is the token of whoever creates it."""
    given.setdefault("tenant", "shop")
    if not given.get("roles"):
        given.setdefault("scopes", ["generate"])
    asked = pb.CreateClientRequest(client_id=client_id, **given)
    metadata = bearer(by or await front.token())
    return str((await front.stub.CreateClient(asked, metadata=metadata)).client_secret)


async def key_of(front: Front, client_id: str, *, by: str = "", **given: Any) -> str:
    """A new API key of the client."""
    asked = pb.CreateApiKeyRequest(client_id=client_id, **given)
    metadata = bearer(by or await front.token())
    return str((await front.stub.CreateApiKey(asked, metadata=metadata)).api_key)


def with_secret_of_another(key: str) -> str:
    """The same public part and a right checksum, but another secret."""
    return compose(public_id(key), OTHER_SECRET)


async def exchanged(front: Front, key: str) -> pb.ExchangeApiKeyResponse:
    """What the key grants now. Raises AioRpcError."""
    return await front.stub.ExchangeApiKey(pb.ExchangeApiKeyRequest(api_key=key))


async def fault_of(call: Any) -> Fault | None:
    """How a call is refused; None when it is not."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return fault_from_rpc_error(error)
    return None


def told(fault: Fault | None) -> tuple[Any, ...]:
    """All that a caller learns from a refusal."""
    assert fault is not None, "it was not refused"
    violations = tuple((v.field, v.description) for v in fault.violations)
    return fault.code, fault.reason, fault.message, tuple(fault.metadata.items()), violations


def from_address(*forwarded: str) -> Fields:
    """Metadata of a proxy that forwards a call from there; of several values, several fields."""
    return [("x-forwarded-for", value) for value in forwarded]


async def login(
    front: Front, client_id: str, secret: str, metadata: Sequence[tuple[str, str]] = ()
) -> Fault | None:
    """How a login over gRPC is refused; None when it is not."""
    asked = pb.IssueTokenRequest(client_id=client_id, client_secret=secret)
    return await fault_of(front.stub.IssueToken(asked, metadata=list(metadata)))


async def http_login(
    front: Front, client_id: str, secret: str, headers: Sequence[tuple[str, str]] = ()
) -> tuple[int, Any]:
    """Status and body of a login over HTTP."""
    async with aiohttp.ClientSession() as http:
        sent = [*basic(client_id, secret).items(), *headers]
        form = {"grant_type": "client_credentials"}
        async with http.post(f"{front.http}/oauth/token", data=form, headers=sent) as answer:
            return answer.status, await answer.json()


async def status_of(front: Front, rpc: str, body: Message, fields: Fields) -> str:
    """How a call ends whose metadata are sent as they are: grpc's client sends one field of each
    name only, the last."""
    async with peer(front.port) as raw:
        raw.open(1, request(f"/anabranch.v1.AuthService/{rpc}", *fields))
        raw.data(1, message(body.SerializeToString()), end=True)
        return await raw.status(1)
