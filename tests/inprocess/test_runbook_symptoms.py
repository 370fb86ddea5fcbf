"""What the runbook's table of refusals says is what callers really hear.

Each row's status, reason and words are provoked on real services in this process, or the row names
the test that does so. The table of connections is test_runbook_connections.py's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from anabranch.v1 import admin_pb2 as adm
from anabranch.v1 import admin_pb2_grpc, auth_pb2_grpc, errors_pb2, model_pb2_grpc
from anabranch.v1 import auth_pb2 as auth
from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2 as model
from anabranch.v1 import session_pb2 as ses
from services.chassis.channels import open_channel
from services.chassis.errors import Fault, fault_from_rpc_error, reason_name
from services.chassis.quotas.rules import QuotaRule, Subject, Unit
from services.chassis.settings import Secret
from services.local_engine import app as engine_app
from services.local_engine import settings as engine_settings
from tests.support.auth import bearer
from tests.support.inprocess import MODEL, Cluster, cluster
from tests.support.provider import KEY, Provider, routes_file, simulator
from tests.support.runbook import rows
from tests.support.waiting import BOUND_S, until
from tools.cluster.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
TABLE = rows((ROOT / "docs/runbook.md").read_text(encoding="utf-8"), "Refusals")

ELSEWHERE = {
    "it was read": "inprocess/test_plain_calls.py::"
    "test_more_than_the_bound_stops_the_work_though_the_caller_never_reads",
    "tokens": "inprocess/test_routing_policy.py::"
    "test_tiers_that_differ_do_not_go_on_with_each_others_answers",
    "this process is shutting down": "inprocess/test_client.py::"
    "test_a_start_that_crosses_go_away_is_repeated_elsewhere",
    "the audit trail cannot be written": "inprocess/test_audit.py::"
    "test_while_the_trail_cannot_be_written_no_act_is_done_and_requests_are_then_refused",
    "cannot reach its database": "contract/test_auth_replicas.py::"
    "test_without_their_database_replicas_refuse_and_what_they_issued_stays_good",
    "the files": "inprocess/test_models_at_run_time.py::"
    "test_a_load_that_fails_says_why_and_changes_nothing",
    "allows no source": "inprocess/test_models_at_run_time.py::"
    "test_only_what_the_setting_allows_is_loaded",
    "sleeps here": "inprocess/test_models_at_run_time.py::"
    "test_a_sleeping_model_takes_nothing_until_it_is_woken",
    "internal error; incident": "unit/test_errors.py::test_a_bug_tells_no_internals",
}
"""Rows whose words other tests bring about."""


def cells(row: list[str]) -> tuple[str, str, str]:
    """Status, reason and words of a row."""
    status, reason, words = (cell.strip("`") for cell in row[:3])
    return status, reason, words


@dataclass
class Scene:
    """A small cluster and its administrator, whose engine runs one request at a time."""

    cluster: Cluster
    provider: Provider
    router: grpc.aio.Channel
    auth: Any
    admin: list[tuple[str, str]]
    shop: list[tuple[str, str]]

    @property
    def models(self) -> Any:
        return model_pb2_grpc.ModelServiceStub(self.router)

    @property
    def operator(self) -> Any:
        return admin_pb2_grpc.RouterAdminServiceStub(self.router)

    async def client(self, client_id: str, **what: Any) -> list[tuple[str, str]]:
        request = auth.CreateClientRequest(
            **{"client_id": client_id, "tenant": client_id, "scopes": ["generate"], **what}
        )
        made = await self.auth.CreateClient(request, metadata=self.admin)
        return bearer(await self.cluster.token(client_id, made.client_secret))

    async def generate(self, metadata: Any = None, channel: Any = None, **what: Any) -> Any:
        stub = self.models if channel is None else model_pb2_grpc.ModelServiceStub(channel)
        return await stub.Generate(ask(**what), metadata=metadata or self.shop, timeout=BOUND_S)

    @asynccontextmanager
    async def busy(self, channel: Any = None, **what: Any) -> AsyncIterator[None]:
        """The engine's one place is taken for the length of a block."""
        stub = self.models if channel is None else model_pb2_grpc.ModelServiceStub(channel)
        call = stub.StreamGenerate(ask(max_tokens=20_000, **what), metadata=self.shop)
        await call.read()
        try:
            yield
        finally:
            call.cancel()

            async def idle() -> bool:
                return all(not backend.in_flight for backend in await self.cluster.backends())

            await until(idle)


def ask(max_tokens: int = 1, **what: Any) -> pb.GenerateRequest:
    request = pb.GenerateRequest(**{"model": MODEL, "prompt": "x", **what})
    request.sampling.max_tokens = max_tokens
    if max_tokens > 1:
        request.sampling.ignore_eos = True
    return request


async def heard(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    """The error that a call ends with, outside of which everything is closed in order."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value


LOCAL_ONLY = pb.Routing(residency=pb.RESIDENCY_LOCAL_ONLY)
CLOUD_ONLY = pb.Routing(residency=pb.RESIDENCY_CLOUD_ONLY)
CHAT = [pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="x")])]
TO_CLOUD: dict[str, Any] = {"prompt": "", "messages": CHAT, "routing": CLOUD_ONLY}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder = tmp_path_factory.mktemp("symptoms")
    async with (
        simulator() as provider,
        cluster(folder, engines=[{"max_num_seqs": 1}], router={"max_queue_time": 0.0}) as running,
    ):
        assert running.router is not None
        route = {"provider": "simulator", "model": "sim-chat"}
        await running.add_cloud(
            routes_file(folder, provider.url, **{MODEL: route}),
            api_keys=Secret(f"simulator={KEY}"),
        )
        await running.backends_ready(2)
        admin = bearer(await running.token())
        shop = bearer(await running.token("web", await running.new_client("web", "generate")))
        async with running.channel(running.router) as router, running.channel(running.auth) as door:
            stub = auth_pb2_grpc.AuthServiceStub(door)
            yield Scene(running, provider, router, stub, admin, shop)


Provocation = Callable[[Scene], Awaitable[Any]]
PROVOCATIONS: dict[str, Provocation] = {}


def provokes(words: str) -> Callable[[Provocation], Provocation]:
    """Says which row's words a function brings about."""

    def keep(provocation: Provocation) -> Provocation:
        PROVOCATIONS[words] = provocation
        return provocation

    return keep


@provokes("no valid credential")
async def _no_token(s: Scene) -> None:
    await s.models.ListModels(model.ListModelsRequest())


@provokes("the client's credentials were not accepted")
async def _wrong_secret(s: Scene) -> None:
    await s.auth.IssueToken(auth.IssueTokenRequest(client_id="admin", client_secret="no"))


@provokes("the credential does not allow this: needs")
async def _no_scope(s: Scene) -> None:
    await s.operator.ListBackends(adm.ListBackendsRequest(), metadata=s.shop)


@provokes("the credential does not allow this model")
async def _no_model(s: Scene) -> None:
    await s.generate(await s.client("narrow", models=["other-*"]))


@provokes("may not be used from this address")
async def _wrong_network(s: Scene) -> None:
    near = await s.client("near", allowed_cidrs=["127.0.0.1/32"])
    proxied = [*near, ("x-forwarded-for", "192.0.2.1")]
    async with (
        s.cluster.one_more_router(trusted_proxies=("127.0.0.0/8",)) as host,
        s.cluster.channel(host) as channel,
    ):
        refused = await heard(s.generate(proxied, channel=channel))
    raise refused


@provokes("the policy keeps this tenant's requests local")
async def _kept_local(s: Scene) -> None:
    kept = await s.client("kept")
    await s.operator.UpdatePolicy(
        adm.UpdatePolicyRequest(policy_yaml="version: 1\ntenants: {kept: {cloud: false}}\n"),
        metadata=s.admin,
    )
    await s.generate(kept, **TO_CLOUD)


@provokes("the request is not valid")
async def _invalid(s: Scene) -> None:
    await s.generate(prompt="")


@provokes("the prompt has")
async def _too_long(s: Scene) -> None:
    await s.generate(max_tokens=1_000_000, routing=LOCAL_ONLY)


@provokes("no backend serves")
async def _unknown_model(s: Scene) -> None:
    await s.generate(model="nope")


@provokes("ListBackends lists the ids")
async def _unknown_backend(s: Scene) -> None:
    await s.operator.DrainBackend(adm.DrainBackendRequest(backend_id="nope"), metadata=s.admin)


@provokes("this request_id was used before with another body")
async def _reused_id(s: Scene) -> None:
    await s.generate(request_id="same")
    await s.generate(request_id="same", prompt="y")


@provokes("this client_id is taken")
async def _taken(s: Scene) -> None:
    await s.client("twice")
    await s.client("twice")


@provokes("being loaded")
async def _loading(s: Scene) -> None:
    port = free_port()
    own = s.cluster.common("engine-loading") | {"listen": f"127.0.0.1:{port}"}
    settings = engine_settings.Settings(engine="sim", sim_load_seconds=600.0, **own)
    loading = asyncio.create_task(engine_app.running(settings).__aenter__())
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            await channel.channel_ready()
            await s.generate(channel=channel)
    finally:
        loading.cancel()
        await asyncio.wait([loading])


@provokes("the policy in force has the version")
async def _version(s: Scene) -> None:
    request = adm.UpdatePolicyRequest(policy_yaml="version: 1\n", expected_version="x")
    await s.operator.UpdatePolicy(request, metadata=s.admin)


@provokes("still have the role")
async def _in_use(s: Scene) -> None:
    role = auth.AccessRole(name="chatters", scopes=["generate"], models=["*"])
    await s.auth.SetRole(auth.SetRoleRequest(role=role), metadata=s.admin)
    await s.client("talker", scopes=[], roles=["chatters"])
    await s.client("talker-2", scopes=[], roles=["chatters"])
    await s.auth.DeleteRole(auth.DeleteRoleRequest(name="chatters"), metadata=s.admin)


@provokes("a quota is used up")
async def _quota(s: Scene) -> None:
    await s.cluster.set_quota("few", "", QuotaRule(Subject.TENANT, Unit.REQUESTS, 1, 3600, 1))
    few = await s.client("few")
    await s.generate(few)
    await s.generate(few)


@provokes("no capacity came free in time")
async def _overloaded(s: Scene) -> None:
    async with s.busy(routing=LOCAL_ONLY):
        await s.generate(routing=LOCAL_ONLY)


@provokes("calls are being served, which is the limit")
async def _too_many_calls(s: Scene) -> None:
    async with (
        s.cluster.one_more_router(max_concurrent_rpcs=1) as host,
        s.cluster.channel(host) as channel,
    ):
        stub = model_pb2_grpc.ModelServiceStub(channel)
        held = stub.Session(metadata=s.shop)
        await held.read()
        refused = await heard(stub.ListModels(model.ListModelsRequest(), metadata=s.shop))
        held.cancel()
    raise refused


@provokes("only the cloud could take it")
async def _no_budget(s: Scene) -> None:
    cheap = pb.Routing(residency=pb.RESIDENCY_CLOUD_ONLY, max_cost_microusd=1)
    await s.generate(**(TO_CLOUD | {"routing": cheap}), max_tokens=100_000)


@provokes("more than the")
async def _too_large(s: Scene) -> None:
    assert s.cluster.router is not None
    async with grpc.aio.insecure_channel(s.cluster.router.address) as channel:
        await s.generate(channel=channel, prompt="x" * (5 << 20))


@provokes("can take it now")
async def _nobody(s: Scene) -> None:
    engine = next(b for b in await s.cluster.backends() if b.tier == pb.TIER_LOCAL).backend_id
    await s.operator.DrainBackend(adm.DrainBackendRequest(backend_id=engine), metadata=s.admin)
    try:
        await s.generate(routing=LOCAL_ONLY)
    finally:
        await s.operator.UndrainBackend(
            adm.UndrainBackendRequest(backend_id=engine), metadata=s.admin
        )


@provokes("the auth service has not been reached")
async def _no_keys(s: Scene) -> None:
    own = s.cluster.common("engine-alone") | {"auth_target": "127.0.0.1:1", "registry": "none"}
    async with (
        engine_app.running(engine_settings.Settings(engine="sim", **own)) as host,
        s.cluster.channel(host) as channel,
    ):
        refused = await heard(s.generate(channel=channel))
    raise refused


@provokes("simulator: ")
async def _provider(s: Scene) -> None:
    await s.provider.fault("5xx", count=20)
    await s.generate(**TO_CLOUD)


@provokes("the request's time ran out")
async def _out_of_time(s: Scene) -> None:
    request = ask(max_tokens=20_000, routing=LOCAL_ONLY)
    request.timeout.FromMilliseconds(300)
    await s.models.Generate(request, metadata=s.shop, timeout=BOUND_S)


@provokes("no such session")
async def _session_lost(s: Scene) -> None:
    call = s.models.Session(metadata=s.shop)
    await call.write(ses.SessionRequest(resume=ses.SessionResume(session_id="x" * 32)))
    while await call.read() is not grpc.aio.EOF:
        pass


@provokes("this model does not embed")
async def _no_embeddings(s: Scene) -> None:
    await s.models.Embed(model.EmbedRequest(model=MODEL, inputs=["x"]), metadata=s.shop)


@provokes("there is no such method here")
async def _no_method(s: Scene) -> None:
    call = s.router.unary_unary("/anabranch.v1.ModelService/Nope")
    await call(b"", metadata=s.shop)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("row", [row for row in TABLE if cells(row)[2] in PROVOCATIONS])
async def test_a_refusal_is_as_its_row_says(scene: Scene, row: list[str]) -> None:
    status, reason, words = cells(row)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await PROVOCATIONS[words](scene)
    fault: Fault = fault_from_rpc_error(refused.value)
    assert (fault.code.name, reason_name(fault.reason)) == (status, reason)
    assert words in fault.message


def test_every_row_is_provoked_here_or_by_a_test_that_exists():
    words = [cells(row)[2] for row in TABLE]
    assert len(set(words)) == len(words)
    assert set(words) == PROVOCATIONS.keys() | ELSEWHERE.keys()
    for named in ELSEWHERE.values():
        file, _, function = named.partition("::")
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"def {function}\(", text), named


def test_every_reason_of_the_contract_has_a_row():
    listed = {cells(row)[1] for row in TABLE}
    known = {reason_name(number) for number in errors_pb2.ErrorReason.values()}
    # A caller that left hears nothing; the order of frames is the client library's business.
    unseen = {"UNSPECIFIED", "SESSION_PROTOCOL", "CANCELLED"}
    assert known - unseen == listed
