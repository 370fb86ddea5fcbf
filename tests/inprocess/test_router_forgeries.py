"""Forged tokens against a router: none opens an RPC or a session, and none renews one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import grpc
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec

from anabranch.v1 import auth_pb2, auth_pb2_grpc, session_pb2
from anabranch.v1 import generation_pb2 as pb
from tests.support.auth import bearer, until
from tests.support.credential_headers import (
    AROUND,
    FINE,
    can_be_sent,
    ended,
    ended_with_token,
    refusals_of,
)
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub
from tests.support.jwt_attacks import ACCEPTED, ATTACKS, cases
from tests.support.jwt_forge import Forge
from tests.support.real_forge import publishing, real_forge
from tests.support.waiting import BOUND_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

CASES = dict(cases())
LIST = "/anabranch.v1.ModelService/ListModels"
BACKENDS = "/anabranch.v1.RouterAdminService/ListBackends"


class Scene:
    """A cluster, a channel to its router, and the forge that has the auth service's key."""

    def __init__(self, running: Cluster, channel: grpc.aio.Channel, forge: Forge) -> None:
        self.running = running
        self.channel = channel
        self.forge = forge

    async def opens(self, token: str, path: str = LIST) -> str:
        assert self.running.router is not None
        return await ended_with_token(self.channel, self.running.router.address, path, token)

    async def is_shut_to(self, token: str) -> bool:
        return await self.opens(token) == "UNAUTHENTICATED"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory) -> AsyncIterator[Scene]:
    directory = tmp_path_factory.mktemp("cluster")
    es = ec.generate_private_key(ec.SECP256R1())
    with publishing(es):
        async with cluster(directory) as running, running.channel(running.router) as channel:
            forge = real_forge(directory / "auth", es)
            forge.scope = "admin generate"
            yield Scene(running, channel, forge)


@pytest.mark.parametrize("name", CASES)
async def test_no_forgery_opens_an_rpc_that_the_good_token_opens(scene, name):
    good, forged = CASES[name].make(scene.forge)
    assert await scene.opens(good) == "OK"
    assert await scene.opens(forged) in refusals_of(forged)
    assert await scene.opens(forged, BACKENDS) in refusals_of(forged)
    assert await scene.opens(good, BACKENDS) == "OK"


@pytest.mark.parametrize("name", ACCEPTED)
async def test_what_is_unusual_but_right_opens_it(scene, name):
    for token in ACCEPTED[name].make(scene.forge):
        assert await scene.opens(token) == "OK"


@pytest.mark.parametrize("name", AROUND)
async def test_a_good_token_in_a_wrong_place_or_among_others_opens_nothing(scene, name):
    good, forged = CASES["claims changed after signing"].make(scene.forge)
    assert await scene.opens(good) == "OK"
    assert await ended(scene.channel, LIST, AROUND[name](good, forged)) == "UNAUTHENTICATED"
    session = model_stub(scene.channel).Session(metadata=AROUND[name](good, forged))
    assert await session.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("name", FINE)
async def test_a_good_token_in_its_place_opens_it(scene, name):
    fields = FINE[name](*CASES["claims changed after signing"].make(scene.forge))
    assert await ended(scene.channel, LIST, fields) == "OK"


def start() -> pb.GenerateRequest:
    sampling = pb.Sampling(max_tokens=2, ignore_eos=True)
    return pb.GenerateRequest(model=MODEL, prompt="hello", sampling=sampling)


async def answered_after(scene: Scene, authorization: str) -> bool:
    """Whether a session goes on after this renewal; it ends as UNAUTHENTICATED otherwise."""
    session = model_stub(scene.channel).Session(metadata=bearer(scene.forge.good()))
    await session.read()
    frame = session_pb2.SessionRequestFrame(stream=1, start=start())
    await session.write(session_pb2.SessionRequest(authorization=authorization, frames=[frame]))
    async with asyncio.timeout(BOUND_S):
        with suppress(grpc.aio.AioRpcError):
            while (message := await session.read()) is not grpc.aio.EOF:
                if any(frame.last and not frame.error.code for frame in message.frames):
                    session.cancel()
                    return True
    assert await session.code() is grpc.StatusCode.UNAUTHENTICATED
    return False


@pytest.mark.parametrize("kind", ATTACKS)
async def test_no_forgery_opens_or_renews_a_session(scene, kind):
    good, forged = next(iter(ATTACKS[kind].values())).make(scene.forge)
    assert await answered_after(scene, f"Bearer {good}")
    if forged.encode("utf-8", "replace").decode() == forged:  # what a message can hold
        assert not await answered_after(scene, f"Bearer {forged}")
    if can_be_sent(forged) and len(forged) < 8192:
        session = model_stub(scene.channel).Session(metadata=bearer(forged))
        assert await session.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("name", ["Basic {}", "{}", "Bearer Bearer {}", "Bearer {}\u00a0", "x"])
async def test_a_renewal_is_as_strict_about_its_form_as_the_header(scene, name):
    good = scene.forge.good()
    assert await answered_after(scene, f"Bearer {good}")
    assert not await answered_after(scene, name.format(good))


async def test_a_session_is_not_renewed_by_the_token_of_another_client(scene):
    other = Forge(**{**vars(scene.forge), "client_id": "somebody-else"}).good()
    assert await scene.opens(other) == "OK"
    session = model_stub(scene.channel).Session(metadata=bearer(scene.forge.good()))
    await session.read()
    await session.write(session_pb2.SessionRequest(authorization=f"Bearer {other}"))
    assert await session.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_revoked_token_and_those_of_a_disabled_client_are_refused_here_too(scene):
    running = scene.running
    await running.new_client("passing-by", "generate")
    forge = Forge(**{**vars(scene.forge), "client_id": "passing-by", "tenant": "shop"})
    revoked, other = forge.good(), forge.good()
    assert await scene.opens(revoked) == await scene.opens(other) == "OK"
    admin = bearer(await running.token())
    async with running.channel(running.auth) as channel:
        auth = auth_pb2_grpc.AuthServiceStub(channel)
        await auth.RevokeToken(auth_pb2.RevokeTokenRequest(token=revoked), metadata=admin)
        await until(lambda: scene.is_shut_to(revoked))
        assert await scene.opens(other) == "OK"
        disable = auth_pb2.DisableClientRequest(client_id="passing-by")
        await auth.DisableClient(disable, metadata=admin)
        await until(lambda: scene.is_shut_to(other))
        assert await scene.opens(forge.good()) == "UNAUTHENTICATED"
