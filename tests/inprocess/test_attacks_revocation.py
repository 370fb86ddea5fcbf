"""What was ended is dead in every service, with all that was derived from it.

A token outlives what it was issued for only in the minds of those who verify it (CWE-613): a key
revoked, a client disabled, a key that is over. Waited for, never timed: how soon is measured
elsewhere.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from anabranch.api_keys import public_id
from anabranch.v1 import auth_pb2 as pb
from anabranch.v1 import model_pb2, session_pb2
from tests.support.access_requests import generate_request
from tests.support.attackers import created, exchanged, fault_of, key_of, told
from tests.support.auth import Front, auth, bearer, until
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub
from tests.support.waiting import BOUND_S


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator["Town"]:
    async with cluster(tmp_path) as running:
        assert running.router is not None
        hosts = {"router": running.router, "engine": running.engines[0].host}
        channels = {name: running.channel(host) for name, host in hosts.items()}
        front = Front(
            running.auth.address, running.auth.http_address, running.admin_secret, tmp_path
        )
        yield Town(running, front, channels)
        for channel in (*channels.values(), front.channel):
            await channel.close()


class Town:
    """A cluster, and one RPC of each of its services that the scope `generate` opens."""

    def __init__(
        self, running: Cluster, front: Front, channels: dict[str, grpc.aio.Channel]
    ) -> None:
        self.running = running
        self.front = front
        self.channels = channels

    async def codes(self, credential: str) -> dict[str, str]:
        """How each service answers it."""
        metadata = bearer(credential)
        calls = {
            name: model_stub(channel).ListModels(model_pb2.ListModelsRequest(), metadata=metadata)
            for name, channel in self.channels.items()
        }
        calls["auth"] = self.front.stub.IntrospectToken(
            pb.IntrospectTokenRequest(token="a.b.c"), metadata=metadata
        )
        return {name: (await call.code()).name for name, call in calls.items()}

    async def lives(self, *credentials: str) -> None:
        for credential in credentials:
            assert set((await self.codes(credential)).values()) == {"OK"}

    async def dies(self, *credentials: str) -> None:
        """Waits until no service takes any of them."""

        async def dead() -> bool:
            answers = [await self.codes(credential) for credential in credentials]
            return {code for codes in answers for code in codes.values()} == {"UNAUTHENTICATED"}

        await until(dead)


async def test_a_revoked_key_and_its_tokens_are_dead_in_every_service(town: Town) -> None:
    """The key, and whatever was exchanged for it by whomever; another key of the client lives."""
    await created(town.front, "orders")
    key, other = await key_of(town.front, "orders"), await key_of(town.front, "orders")
    token = (await exchanged(town.front, key)).access_token
    await town.lives(key, token, other)
    revoke = pb.RevokeApiKeyRequest(key_id=public_id(key))
    await town.front.as_admin(town.front.stub.RevokeApiKey, revoke)
    await town.dies(key, token)
    assert await fault_of(exchanged(town.front, key)) is not None
    assert not await town.front.active(token)
    await town.lives(other)


async def test_a_disabled_client_takes_its_keys_and_tokens_with_it(town: Town) -> None:
    """Keys are not looked at one by one: the client is gone."""
    secret = await created(town.front, "orders")
    key = await key_of(town.front, "orders")
    token = await town.front.token("orders", secret)
    await town.lives(key, token)
    disable = pb.DisableClientRequest(client_id="orders")
    await town.front.as_admin(town.front.stub.DisableClient, disable)
    await town.dies(key, token)


async def test_a_revoked_token_takes_nothing_else_with_it(town: Town) -> None:
    """Who holds a token that leaked may end it alone, and nobody else's with it."""
    secret = await created(town.front, "orders")
    token, other = [await town.front.token("orders", secret) for _ in range(2)]
    await town.lives(token, other)
    revoke = pb.RevokeTokenRequest(token=token)
    await town.front.stub.RevokeToken(revoke, metadata=bearer(token))
    await town.dies(token)
    await town.lives(other)


async def test_a_session_starts_nothing_for_what_was_revoked(town: Town) -> None:
    """It was opened with a good key and is still open: what it runs may end, no more begins."""
    await created(town.front, "orders", models=["*"])
    key = await key_of(town.front, "orders")
    call = model_stub(town.channels["engine"]).Session(metadata=bearer(key), timeout=BOUND_S)
    await call.read()
    stream = 0

    async def code() -> int:
        nonlocal stream
        stream += 1
        start = session_pb2.SessionRequestFrame(stream=stream, start=generate_request(MODEL))
        await call.write(session_pb2.SessionRequest(frames=[start]))
        while True:
            for frame in (await call.read()).frames:
                if frame.last:
                    return int(frame.error.code)

    assert await code() == 0
    revoke = pb.RevokeApiKeyRequest(key_id=public_id(key))
    await town.front.as_admin(town.front.stub.RevokeApiKey, revoke)

    async def refused() -> bool:
        return await code() == grpc.StatusCode.UNAUTHENTICATED.value[0]

    await until(refused)
    call.cancel()


async def test_a_key_that_is_over_is_as_one_that_never_was(tmp_path: Path) -> None:
    """Its end is a moment in the database: moved into the past, instead of waited for."""
    async with auth(tmp_path) as front:
        await created(front, "orders")
        key = await key_of(front, "orders", life=Duration(seconds=60))
        assert (await exchanged(front, key)).access_token
        await over(front, "UPDATE api_keys SET expires_at = created_at - 1")
        unknown = told(await fault_of(exchanged(front, "abk_nonsense")))
        assert told(await fault_of(exchanged(front, key))) == unknown


async def test_a_revocation_is_found_by_a_key_that_was_never_used_here(tmp_path: Path) -> None:
    """The list of revoked keys names those whose tokens may live; the others the database knows."""
    async with auth(tmp_path) as front:
        await created(front, "orders")
        key = await key_of(front, "orders")
        await over(front, "UPDATE api_keys SET revoked_at = created_at - 100000")
        listed = await front.stub.GetJwks(pb.GetJwksRequest())
        assert not listed.revoked_api_key_ids
        call = front.stub.IntrospectToken(
            pb.IntrospectTokenRequest(token="a.b.c"), metadata=bearer(key)
        )
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


async def over(front: Front, statement: str, *values: Any) -> None:
    """Changes the database behind the service's back; not on its loop, which may hold the lock."""

    def change() -> None:
        database = front.data / "auth.db"
        with closing(sqlite3.connect(database, timeout=BOUND_S)) as connection, connection:
            connection.execute(statement, values)

    await asyncio.to_thread(change)
