"""Verification keys and own tokens while the auth service moves, comes up, or changes its keys."""

import asyncio
import time

import grpc
import pytest

from anabranch.v1 import auth_pb2, auth_pb2_grpc, errors_pb2
from services.chassis.auth_client import AuthClient, TokenSource
from services.chassis.authn import STALE_LIMIT_S, Verifier
from services.chassis.errors import Fault
from services.chassis.registry import Instance
from services.chassis.settings import Secret
from tests.support.auth import until
from tests.support.local_keys import ISSUER, LocalKeys


class SlowKeys(LocalKeys):
    """Keys that come when the test lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.may_answer = asyncio.Event()

    async def fetch(self, known_version="", wait=0.0):
        self.asked += 1
        await self.may_answer.wait()
        return await super().fetch()


async def test_callers_of_a_process_that_has_just_started_share_its_first_fetch():
    keys = SlowKeys()
    verifier = Verifier(keys, issuer=ISSUER, audience="anabranch")
    token = keys.token("generate")
    callers = [asyncio.ensure_future(verifier.verify(token)) for _ in range(5)]

    async def asked() -> bool:
        return keys.asked > 0

    await until(asked)
    keys.may_answer.set()
    principals = await asyncio.gather(*callers)
    assert {p.client_id for p in principals} == {"tester"}
    assert keys.asked == 1


class Auth(auth_pb2_grpc.AuthServiceServicer):
    """Two RPCs of an auth service, answered when the test lets them."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()

    async def GetJwks(self, request, context):
        self.asked += 1
        await self.may_answer.wait()
        return auth_pb2.GetJwksResponse(jwks_json='{"keys": []}')

    async def IssueToken(self, request, context):
        self.asked += 1
        answer = auth_pb2.IssueTokenResponse(access_token=f"token-{self.asked}")
        answer.expires_in.FromSeconds(300)
        return answer


@pytest.fixture
async def auth():
    server = grpc.aio.server()
    servicer = Auth()
    auth_pb2_grpc.add_AuthServiceServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield servicer, address
    await server.stop(0)


class Moves:
    """A registry in which the auth service is where the test says: at some addresses, by commas."""

    def __init__(self) -> None:
        self.addresses: asyncio.Queue[str] = asyncio.Queue()

    async def watch(self, service: str):
        while True:
            found = (await self.addresses.get()).split(",")
            yield tuple(Instance(address, service, address, {}) for address in found)


async def test_a_fetch_under_way_survives_that_the_auth_service_moves(auth):
    servicer, address = auth
    moves = Moves()
    client = AuthClient("", moves)
    following = asyncio.ensure_future(client.follow())
    moves.addresses.put_nowait(address)

    async def found() -> bool:
        return client.found

    await until(found)
    fetching = asyncio.ensure_future(client.fetch())

    async def asked() -> bool:
        return servicer.asked == 1

    await until(asked)
    moves.addresses.put_nowait("127.0.0.1:1")

    async def moved() -> bool:
        return client._address == "127.0.0.1:1"

    await until(moved)
    servicer.may_answer.set()
    assert (await fetching).jwks_json
    following.cancel()
    await asyncio.wait([following])
    await client.close()


async def test_a_refused_token_is_replaced_but_not_each_time(auth):
    _, address = auth
    client = AuthClient(address, None)
    await client.follow()
    now = time.monotonic()
    source = TokenSource(client, "router", Secret("s"), clock=lambda: now)
    first = await source.token()
    source.was_refused(first)
    assert await source.token() is first
    now += 6
    source.was_refused(first)
    second = await source.token()
    assert second.value != first.value
    now += 6
    source.was_refused(first)
    assert await source.token() is second
    await client.close()


async def test_an_instance_that_fails_is_left_for_the_next_one(auth):
    servicer, address = auth
    servicer.may_answer.set()
    moves = Moves()
    clients = [AuthClient("", moves) for _ in range(20)]
    gone = "127.0.0.1:1"
    preferred = set()
    for client in clients:
        following = asyncio.ensure_future(client.follow())
        moves.addresses.put_nowait(f"{gone},{address}")

        async def found(client: AuthClient = client) -> bool:
            return client.found

        await until(found)
        preferred.add(client._address)
        if client._address == gone:
            with pytest.raises(Fault):
                await client.fetch()
        assert (await client.fetch()).jwks_json
        following.cancel()
        await asyncio.wait([following])
        await client.close()
    assert preferred == {gone, address}, "each process prefers an instance of its own"


class AwayAfterwards(LocalKeys):
    """Keys that can be had once."""

    def __init__(self) -> None:
        super().__init__()
        self.there = True

    async def fetch(self, known_version="", wait=0.0):
        if not self.there:
            raise Fault(errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "away")
        return await super().fetch(known_version, wait)


async def test_known_keys_serve_for_an_hour_after_the_auth_service_was_last_heard_of():
    now = 0.0
    keys = AwayAfterwards()
    verifier = Verifier(keys, issuer=ISSUER, audience="anabranch", monotonic=lambda: now)
    known = keys.token("generate")
    assert (await verifier.verify(known)).client_id == "tester"
    keys.there = False
    now = STALE_LIMIT_S
    assert (await verifier.verify(known)).client_id == "tester"
    assert (await verifier.verify(keys.token("generate"))).client_id == "tester", "a new one, too"
    now = STALE_LIMIT_S + 1
    with pytest.raises(Fault) as refused:
        await verifier.verify(known)
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    assert refused.value.retry_after
