"""Relays speak for others, and nobody else does; what was revoked is dead in every service.

Which scopes open which RPC is test_access_matrix.py's.
"""

import asyncio
from typing import Any

import grpc
import pytest
import pytest_asyncio

from anabranch.v1 import auth_pb2, auth_pb2_grpc, model_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from tests.support.auth import bearer, until
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub
from tests.support.waiting import BOUND_S

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Town:
    """A cluster and a token of each kind of client."""

    def __init__(self, running: Cluster, channels: dict[str, grpc.aio.Channel]) -> None:
        self.running = running
        self.channels = channels
        self.tokens: dict[str, str] = {}

    def metadata(self, who: str) -> list[tuple[str, str]]:
        return bearer(self.tokens[who]) if who in self.tokens else []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory):
    async with cluster(tmp_path_factory.mktemp("town")) as running:
        hosts = {"router": running.router, "engine": running.engines[0].host, "auth": running.auth}
        channels = {name: running.channel(host) for name, host in hosts.items() if host}
        found = Town(running, channels)
        for scope in ("generate", "relay", "admin"):
            secret = await running.new_client(f"only-{scope}", scope)
            found.tokens[scope] = await running.token(f"only-{scope}", secret)
        yield found
        for channel in channels.values():
            await channel.close()


def start(**more: Any) -> session_pb2.SessionRequest:
    request = pb.GenerateRequest(
        model=MODEL, prompt="hello", sampling=pb.Sampling(max_tokens=3, ignore_eos=True)
    )
    return session_pb2.SessionRequest(
        frames=[session_pb2.SessionRequestFrame(stream=1, start=request, **more)]
    )


@pytest.mark.parametrize(
    ("who", "more", "reason"),
    [
        ("relay", {}, "needs generate"),
        (
            "generate",
            {"on_behalf_of": session_pb2.Caller(tenant="a", client_id="b")},
            "needs relay",
        ),
        ("generate", {}, ""),
        ("relay", {"on_behalf_of": session_pb2.Caller(tenant="a", client_id="b")}, ""),
        ("generate", {"mask": [pb.PII_KIND_EMAIL]}, "needs relay"),
        (
            "relay",
            {
                "on_behalf_of": session_pb2.Caller(tenant="a", client_id="b"),
                "mask": [pb.PII_KIND_EMAIL],
            },
            "",
        ),
    ],
)
async def test_a_relay_never_speaks_for_itself_and_nobody_else_for_others(town, who, more, reason):
    call = model_stub(town.channels["engine"]).Session(metadata=town.metadata(who))
    await call.read()
    await call.write(start(**more))
    async with asyncio.timeout(BOUND_S):
        while not (frames := [f for f in (await call.read()).frames if f.last]):
            pass
    call.cancel()
    assert frames[0].error.message.endswith(reason)
    assert (frames[0].error.code == 0) is (reason == "")


async def test_a_revoked_token_is_dead_in_every_service(town):
    secret = await town.running.new_client("leaver", "generate", "admin")
    token = await town.running.token("leaver", secret)
    calls = {
        "router": model_stub(town.channels["router"]).ListModels,
        "engine": model_stub(town.channels["engine"]).ListModels,
        "auth": auth_pb2_grpc.AuthServiceStub(town.channels["auth"]).ListClients,
    }
    empty = {"auth": auth_pb2.ListClientsRequest()}
    for name, call in calls.items():
        await call(empty.get(name, model_pb2.ListModelsRequest()), metadata=bearer(token))
    await auth_pb2_grpc.AuthServiceStub(town.channels["auth"]).RevokeToken(
        auth_pb2.RevokeTokenRequest(token=token), metadata=bearer(token)
    )
    for name, call in calls.items():

        async def dead(name: str = name, call: Any = call) -> bool:
            request = empty.get(name, model_pb2.ListModelsRequest())
            code = await call(request, metadata=bearer(token)).code()
            return bool(code is grpc.StatusCode.UNAUTHENTICATED)

        await until(dead)
