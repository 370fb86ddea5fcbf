"""Forged tokens against the running auth service: none is active, opens an RPC or ends another."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlencode

import aiohttp
import grpc
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec

from anabranch.v1 import auth_pb2 as pb
from services.auth.core.claims import MAX_TOKEN_BYTES
from tests.support.auth import Front, auth, basic, bearer, refused, until
from tests.support.credential_headers import (
    AROUND,
    FINE,
    ended,
    ended_raw,
    ended_with_token,
    refusals_of,
)
from tests.support.jwt_attacks import ACCEPTED, ATTACKS, cases
from tests.support.jwt_forge import Forge
from tests.support.real_forge import publishing, real_forge

pytestmark = pytest.mark.asyncio(loop_scope="module")

CASES = dict(cases())
LIST = "/anabranch.v1.AuthService/ListClients"


class Scene:
    """An auth service that runs, and the forge that has its key."""

    def __init__(self, front: Front, forge: Forge, address: str, http: aiohttp.ClientSession):
        self.front = front
        self.forge = forge
        self.address = address
        self.http = http

    async def opens(self, token: str) -> str:
        return await ended_with_token(self.front.channel, self.address, LIST, token)

    async def is_shut_to(self, token: str) -> bool:
        return await self.opens(token) == "UNAUTHENTICATED"

    async def active(self, token: str) -> bool:
        """Whether introspection over gRPC finds it active; it says no more of any other."""
        request = pb.IntrospectTokenRequest(token=token)
        call = self.front.stub.IntrospectToken(request, metadata=bearer(self.forge.good()))
        if 0 < len(token) <= MAX_TOKEN_BYTES:
            answer = await call
            assert answer.active or answer == pb.IntrospectTokenResponse()
            return bool(answer.active)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        return False

    async def active_over_http(self, token: str) -> bool:
        form = urlencode({"token": token.encode("utf-8", "surrogatepass")})
        answer = await self.http.post(
            f"{self.front.http}/oauth/introspect",
            data=form,
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )
        if answer.status != 200:
            assert answer.status == 400, await answer.text()
            return False
        found = await answer.json()
        assert found["active"] or found == {"active": False}
        return bool(found["active"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory) -> AsyncIterator[Scene]:
    es = ec.generate_private_key(ec.SECP256R1())
    data = tmp_path_factory.mktemp("auth")
    with publishing(es):
        async with (
            auth(data) as front,
            aiohttp.ClientSession(headers=basic("admin", front.secret)) as http,
        ):
            yield Scene(front, real_forge(data, es), front.address, http)


@pytest.mark.parametrize("name", CASES)
async def test_no_forgery_opens_an_rpc_that_the_good_token_opens(scene, name):
    good, forged = CASES[name].make(scene.forge)
    assert await scene.opens(good) == "OK"
    assert await scene.opens(forged) in refusals_of(forged)
    assert await scene.opens(good) == "OK"


@pytest.mark.parametrize("name", CASES)
async def test_no_forgery_is_active(scene, name):
    good, forged = CASES[name].make(scene.forge)
    assert await scene.active(good)
    if forged.isascii() or forged.encode("utf-8", "replace").decode() == forged:
        assert not await scene.active(forged)


async def test_no_forgery_is_active_over_http(scene):
    # Each of these costs a check of the client's password: one of a class, and the classics.
    classics = ("HMAC with the public key: PEM", "iss of another: slash behind")
    attacks = {kind: next(iter(variants.values())) for kind, variants in ATTACKS.items()}
    for name, attack in (attacks | {name: CASES[name] for name in classics}).items():
        good, forged = attack.make(scene.forge)
        assert await scene.active_over_http(good), name
        assert not await scene.active_over_http(forged), name


@pytest.mark.parametrize("name", ACCEPTED)
async def test_what_is_unusual_but_right_opens_it(scene, name):
    for token in ACCEPTED[name].make(scene.forge):
        assert await scene.opens(token) == "OK"
        assert await scene.active(token)


@pytest.mark.parametrize("name", AROUND)
async def test_a_good_token_in_a_wrong_place_or_among_others_opens_nothing(scene, name):
    good, forged = CASES["claims changed after signing"].make(scene.forge)
    assert await scene.opens(good) == "OK"
    fields = AROUND[name](good, forged)
    assert await ended(scene.front.channel, LIST, fields) == "UNAUTHENTICATED"


@pytest.mark.parametrize("name", FINE)
async def test_a_good_token_in_its_place_opens_it(scene, name):
    fields = FINE[name](*CASES["claims changed after signing"].make(scene.forge))
    assert await ended(scene.front.channel, LIST, fields) == "OK"


@pytest.mark.parametrize("name", [b"Authorization", b"authorization ", b"authorization\0", b"-bin"])
async def test_no_other_spelling_of_the_headers_name_opens_it(scene, name):
    value = f"Bearer {scene.forge.good()}".encode()
    assert await ended_raw(scene.address, LIST, ("authorization", value)) == "OK"
    assert await ended_raw(scene.address, LIST, (name.decode(), value)) != "OK"


@pytest.mark.parametrize(
    "name",
    ["a stranger's key under our kid: EdDSA", "claims changed after signing", "alg none: 'none'"],
)  # fmt: skip
async def test_a_forgery_cannot_revoke_the_token_that_it_names(scene, name):
    good, forged = CASES[name].make(scene.forge)
    await scene.front.stub.RevokeToken(
        pb.RevokeTokenRequest(token=forged), metadata=bearer(scene.forge.good())
    )
    assert await scene.active(good)
    await scene.front.stub.RevokeToken(
        pb.RevokeTokenRequest(token=good), metadata=bearer(scene.forge.good())
    )
    assert not await scene.active(good)
    await until(lambda: scene.is_shut_to(good))


async def test_revoking_ends_the_second_spelling_of_an_es256_token_too(scene):
    first, second = ACCEPTED["ES256 with the other s"].make(scene.forge)
    assert [await scene.opens(token) for token in (first, second)] == ["OK", "OK"]
    await scene.front.stub.RevokeToken(
        pb.RevokeTokenRequest(token=first), metadata=bearer(scene.forge.good())
    )
    for token in (first, second):
        await until(lambda token=token: scene.is_shut_to(token))
        assert not await scene.active(token)


async def test_a_forgery_names_no_reason_and_all_are_refused_in_the_same_words(scene):
    texts = set()
    for name in ("expired: by five minutes", "iss of another: other", "kid unknown", "alg missing"):
        _, forged = CASES[name].make(scene.forge)
        call = scene.front.stub.ListClients(pb.ListClientsRequest(), metadata=bearer(forged))
        fault = await refused(call)
        assert fault.code == grpc.StatusCode.UNAUTHENTICATED
        texts.add(fault.message)
    assert len(texts) == 1


async def test_nobody_connects_to_where_a_token_says_its_key_is(scene):
    seen = []

    async def count(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("peername"))
        writer.close()

    async with await asyncio.start_server(count, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        there = Forge(**{**vars(scene.forge), "attacker_url": f"http://127.0.0.1:{port}/keys"})
        kinds = [kind for kind in ATTACKS if kind.startswith("key behind")]
        assert len(kinds) == 3
        for kind in kinds:
            for attack in ATTACKS[kind].values():
                _, forged = attack.make(there)
                assert await scene.opens(forged) == "UNAUTHENTICATED"
                assert not await scene.active(forged)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        assert seen == [writer.get_extra_info("sockname")]
        writer.close()
