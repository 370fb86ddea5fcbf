"""Edges of the auth service that once went wrong: API keys taken for tokens, lives of their tokens,
and what the audit trail says of logins."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from anabranch.v1 import auth_pb2 as pb
from anabranch.v1 import errors_pb2
from services.auth.acts import Acts
from services.auth.records import Records
from services.auth.store import Store, database_url, open_store
from services.chassis.audit.entry import Act
from services.chassis.authn import KeySet, Verifier
from tests.support.auth import ISSUER, Front, auth, basic, refused, until


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with auth(tmp_path) as opened:
        yield opened


async def new_key(front: Front, client_id: str, life: int | None = None) -> str:
    request = pb.CreateApiKeyRequest(client_id=client_id)
    if life is not None:
        request.life.FromSeconds(life)
    return str((await front.as_admin(front.stub.CreateApiKey, request)).api_key)


async def acts(front: Front, action: str) -> list[tuple[str, bool]]:
    request = pb.QueryAuditRequest(action=action, page_size=1000)
    found = await front.as_admin(front.stub.QueryAudit, request)
    return [(r.target, r.succeeded) for r in reversed(found.records)]


async def test_an_api_key_is_no_token_to_ask_about_or_to_revoke(front: Front) -> None:
    secret = await front.new_client("orders")
    key = await new_key(front, "orders")
    asked = pb.IntrospectTokenRequest(token=key)
    assert await front.as_admin(front.stub.IntrospectToken, asked) == pb.IntrospectTokenResponse()
    fault = await refused(front.as_admin(front.stub.RevokeToken, pb.RevokeTokenRequest(token=key)))
    assert fault.code == grpc.StatusCode.INVALID_ARGUMENT
    assert [v.field for v in fault.violations] == ["token"]
    assert key not in str(fault.violations) + fault.message
    headers, form = basic("orders", secret), {"token": key}
    async with aiohttp.ClientSession(front.http, headers=headers) as http:
        async with http.post("/oauth/introspect", data=form) as answer:
            assert await answer.json() == {"active": False}
        async with http.post("/oauth/revoke", data=form) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"] == "unsupported_token_type"
    assert await acts(front, "token.revoke") == []
    assert (await front.stub.ExchangeApiKey(pb.ExchangeApiKeyRequest(api_key=key))).scopes


async def test_a_token_lives_no_longer_than_its_api_key(front: Front) -> None:
    await front.new_client("orders")
    short, long = await new_key(front, "orders", 60), await new_key(front, "orders", 3600)
    lives = [
        (await front.stub.ExchangeApiKey(pb.ExchangeApiKeyRequest(api_key=key))).expires_in.seconds
        for key in (short, long)
    ]
    assert lives[0] <= 60
    assert lives[1] == 300


async def test_a_short_lived_token_of_a_key_serves_more_than_one_request(front: Front) -> None:
    request = pb.CreateClientRequest(client_id="orders", tenant="shop", scopes=["generate"])
    request.token_life.FromSeconds(40)
    await front.as_admin(front.stub.CreateClient, request)
    key, exchanged, later = await new_key(front, "orders"), 0, 0.0

    class Exchange:
        async def fetch(self, known_version: str = "", wait: float = 0.0) -> KeySet:
            found = await front.stub.GetJwks(pb.GetJwksRequest())
            return KeySet(found.jwks_json, 1.0)

        async def exchange(self, api_key: str) -> str:
            nonlocal exchanged
            exchanged += 1
            request = pb.ExchangeApiKeyRequest(api_key=api_key)
            return str((await front.stub.ExchangeApiKey(request)).access_token)

    verifier = Verifier(
        Exchange(),
        issuer=ISSUER,
        audience="anabranch",
        clock=lambda: time.time() + later,
        exchange=Exchange(),
    )
    for _ in range(20):
        await verifier.verify(key)
    assert exchanged == 1
    later = 35.0
    await verifier.verify(key)
    assert exchanged == 2, "before it ends another is asked for"
    await verifier.close()


async def test_a_login_is_written_down_as_what_came_of_it(front: Front) -> None:
    secret = await front.new_client("orders")
    fault = await refused(front.token("orders", secret, "audit"))
    assert fault.reason == errors_pb2.ERROR_REASON_ACCESS_DENIED
    token = await front.token("orders", secret)
    headers = basic("orders", secret)
    async with (
        aiohttp.ClientSession(front.http, headers=headers) as http,
        http.post("/oauth/introspect", data={"token": token}) as answer,
    ):
        assert (await answer.json())["active"]
    await refused(front.token("orders", "wrong"))

    async def all_written() -> bool:
        found = [done for target, done in await acts(front, "token.issue") if target == "orders"]
        assert found == [False, True, False][: len(found)], "asking about a token issues none"
        return len(found) == 3

    await until(all_written)


async def test_whoever_tries_to_create_more_than_itself_is_in_the_trail(front: Front) -> None:
    secret = await front.new_client("boss", "tenant-admin")
    metadata = [("authorization", f"Bearer {await front.token('boss', secret)}")]
    request = pb.CreateClientRequest(client_id="giant", tenant="shop", scopes=["admin"])
    fault = await refused(front.stub.CreateClient(request, metadata=metadata))
    assert fault.reason == errors_pb2.ERROR_REASON_ACCESS_DENIED

    async def written() -> bool:
        return ("giant", False) in await acts(front, "client.create")

    await until(written)


async def test_a_batch_that_is_written_while_the_service_stops_is_written_once(
    tmp_path: Path,
) -> None:
    written, go = asyncio.Event(), asyncio.Event()

    class SlowToSaySo(Store):
        """Its commit has happened before whoever waits for it hears of it."""

        def __init__(self, store: Store) -> None:
            self._store = store

        @asynccontextmanager
        async def alone(self) -> AsyncIterator[Records]:
            async with self._store.alone() as records:
                yield records
            written.set()
            await go.wait()

    async with open_store(database_url(f"sqlite:///{tmp_path / 'auth.db'}")) as store:
        noted = Acts(SlowToSaySo(store), spool=10, retention=1e9, clock=lambda: 1000.0)
        noted.note(Act("token.issue", target="orders"))
        writing: asyncio.Task[Any] = asyncio.create_task(noted.keep_written())
        await written.wait()
        writing.cancel()
        asyncio.get_running_loop().call_later(0.01, go.set)
        await asyncio.wait([writing])
        async with store.reading() as records:
            last = await records.trail.last()
    assert last is not None
    assert last.entry.sequence == 1
