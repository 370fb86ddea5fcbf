"""Every RPC, called by nobody, with each scope and with each role, about each tenant's things.

The verdicts follow from the `(access)` options alone, by the few lines of `verdict` here, which
share nothing with the code that they judge.
"""

import importlib
import pkgutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

import anabranch.v1
from anabranch.v1 import auth_pb2, auth_pb2_grpc, generation_pb2, model_pb2, options_pb2
from services.chassis.settings import Secret
from tests.support.access_requests import (
    CASES,
    CLIENTS,
    MISSING,
    NOWHERE,
    OTHER,
    OWN,
    TENANTS,
    Targets,
    model_requests,
)
from tests.support.auth import bearer
from tests.support.inprocess import MODEL, Cluster, cluster
from tests.support.outcomes import CLOSED, Metadata, Outcome, outcome_of
from tests.support.provider import KEY, routes_file, simulator

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTS = {
    "ModelService": ("router", "engine", "cloud"),
    "RouterAdminService": ("router",),
    "AuthService": ("auth",),
    "OperationsService": ("router", "engine", "cloud", "auth"),
    "ModelAdminService": ("engine",),
}
CELLS = 1104
"""RPC x caller x place. Changes when an RPC, a scope or a role is added: then look at its cells."""

LAKE = "sim-lake"
CLOUD = "cloud-chat"
SERVED = {"router": MODEL, "engine": MODEL, "cloud": CLOUD}
"""A model that there is, by host."""
NOBODY = "nobody"


def services() -> Iterator[ServiceDescriptor]:
    """Every service of the contracts."""
    for module in pkgutil.iter_modules(anabranch.v1.__path__):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(f"anabranch.v1.{module.name}").DESCRIPTOR
            yield from file.services_by_name.values()


def rule_of(method: MethodDescriptor) -> Any:
    return method.GetOptions().Extensions[options_pb2.access]


SERVICES = list(services())
METHODS = [method for service in SERVICES for method in service.methods]
SCOPES = sorted({s for m in METHODS for s in (*rule_of(m).any_scope, *rule_of(m).own_tenant_scope)})
ROLES = ("administrator", "auditor", "caller", "tenant-administrator", "viewer")
CALLERS = (NOBODY, *SCOPES, *ROLES)
ASKED = [(host, m) for m in METHODS for host in HOSTS[m.containing_service.name]]


def verdict(method: MethodDescriptor, scopes: set[str] | None, place: str) -> str:
    """What the options say: "open", "closed", or "hidden" for what is not the caller's tenant's.

    `scopes` is None for nobody.
    """
    rule = rule_of(method)
    if rule.public:
        return "open"
    if scopes is None:
        return "closed"
    wanted = set(rule.any_scope)
    if not wanted or wanted & scopes:
        return "open"
    if set(rule.own_tenant_scope) & scopes:
        return "open" if place in (OWN, *NOWHERE) else "hidden"
    return "closed"


@dataclass
class Town:
    """A cluster and everybody in it."""

    running: Cluster
    channels: dict[str, grpc.aio.Channel]
    targets: Targets
    tokens: dict[str, str] = field(default_factory=dict)
    scopes: dict[str, set[str] | None] = field(default_factory=lambda: {NOBODY: None})

    def metadata(self, who: str) -> Metadata:
        return bearer(self.tokens[who]) if who in self.tokens else []

    @property
    def auth(self) -> Any:
        return auth_pb2_grpc.AuthServiceStub(self.channels["auth"])

    async def admit(self, who: str, **given: Any) -> None:
        """A new client of the first tenant, logged in."""
        request = auth_pb2.CreateClientRequest(client_id=f"by-{who}", tenant=TENANTS[OWN], **given)
        created = await self.auth.CreateClient(request, metadata=self.metadata("root"))
        login = auth_pb2.IssueTokenRequest(
            client_id=created.client.client_id, client_secret=created.client_secret
        )
        issued = await self.auth.IssueToken(login)
        self.tokens[who], self.scopes[who] = issued.access_token, set(issued.scopes)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Town]:
    directory = tmp_path_factory.mktemp("town")
    async with (
        simulator(KEY) as provider,
        cluster(directory, engines=({}, {"model": LAKE})) as running,
    ):
        routes = routes_file(directory, provider.url)
        cloud = await running.add_cloud(routes, api_keys=Secret(f"simulator={KEY}"))
        hosts = {"router": running.router, "engine": running.engines[0].host, "cloud": cloud}
        hosts["auth"] = running.auth
        await running.backends_ready(3)
        channels = {name: running.channel(host) for name, host in hosts.items() if host}
        targets = Targets(MODEL, "admin", running.admin_secret, "")
        found = Town(running, channels, targets, {"root": await running.token()})
        root = bearer(found.tokens["root"])
        for place in (OWN, OTHER):
            await found.auth.CreateClient(
                auth_pb2.CreateClientRequest(
                    client_id=CLIENTS[place], tenant=TENANTS[place], scopes=["tenant-admin"]
                ),
                metadata=root,
            )
            request = auth_pb2.CreateApiKeyRequest(client_id=CLIENTS[place])
            key = await found.auth.CreateApiKey(request, metadata=root)
            targets.keys[place] = key.info.key_id
        targets.keys[MISSING] = "0" * 16
        key = await found.auth.CreateApiKey(
            auth_pb2.CreateApiKeyRequest(client_id="admin"), metadata=root
        )
        targets.api_key = key.api_key
        for scope in SCOPES:
            await found.admit(scope, scopes=[scope])
        for role in ROLES:
            await found.admit(role, roles=[role], models=["*"])
        for scope in ("generate", "relay"):
            await found.admit(f"{scope}-lake", scopes=[scope], models=[LAKE])
        yield found
        for channel in channels.values():
            await channel.close()


def described(host: str, method: MethodDescriptor) -> str:
    return f"{host}-{method.containing_service.name}.{method.name}"


async def test_every_rpc_has_a_rule_a_host_and_a_request_here() -> None:
    for method in METHODS:
        assert method.GetOptions().HasExtension(options_pb2.access), method.full_name
    asked = {service.name: {m.name for m in service.methods} for service in SERVICES}
    assert {name: set(cases) for name, cases in CASES.items()} == asked
    cells = sum(
        len(CALLERS) * len(CASES[m.containing_service.name][m.name].places) for _, m in ASKED
    )
    assert cells == CELLS


async def test_every_role_and_scope_that_there_is_calls(town: Town) -> None:
    listed = await town.auth.ListRoles(auth_pb2.ListRolesRequest(), metadata=town.metadata("root"))
    built_in = {role.name: set(role.scopes) for role in listed.roles if role.built_in}
    assert {name: town.scopes[name] for name in ROLES} == built_in
    assert built_in["administrator"] == set(SCOPES) - {"relay"}
    for scope in SCOPES:
        assert town.scopes[scope] == {scope}


@pytest.mark.parametrize(
    ("host", "method"), ASKED, ids=[described(host, method) for host, method in ASKED]
)
async def test_an_rpc_opens_to_those_whom_its_rule_names(
    town: Town, host: str, method: MethodDescriptor
) -> None:
    case = CASES[method.containing_service.name][method.name]
    for who in CALLERS:
        seen: dict[str, Outcome] = {}
        for place in case.places:
            request = case.build(town.targets, place)
            found = await outcome_of(town.channels[host], method, request, town.metadata(who))
            expected = verdict(method, town.scopes[who], place)
            cell = (method.full_name, who, place, found)
            if expected == "open":
                assert found.open, cell
            elif expected == "closed":
                assert found.code is CLOSED[who != NOBODY], cell
            else:
                seen[place] = found
                empty = found.answer is not None and not records_of(found.answer)
                assert found.code is grpc.StatusCode.PERMISSION_DENIED or empty, cell
        if seen:
            assert seen[OTHER] == seen[MISSING], (method.full_name, who)


def records_of(answer: Message) -> list[Any]:
    """What a list lists."""
    return [
        record
        for field, value in answer.ListFields()
        if field.message_type is not None and field.is_repeated
        for record in value
    ]


LISTS = {
    "ListClients": lambda record: record.tenant,
    "ListApiKeys": lambda record: record.tenant,
    "ListQuotas": lambda record: record.tenant,
    "ListTenants": lambda record: record.name,
    "QueryAudit": lambda record: record.tenant,
}


async def test_what_lists_for_a_tenant_leaves_the_others_out(town: Town) -> None:
    methods = {m.name: m for m in METHODS if rule_of(m).own_tenant_scope}
    assert {n for n, m in methods.items() if n.startswith(("List", "Query"))} == set(LISTS)
    for tenant in (TENANTS[OWN], TENANTS[OTHER]):
        quota = CASES["AuthService"]["SetQuota"].build(town.targets, OWN)
        quota.quota.tenant = tenant  # type: ignore[attr-defined]
        await town.auth.SetQuota(quota, metadata=town.metadata("root"))
    for name, tenant_of in LISTS.items():
        request = auth_request(methods[name])
        for who in ("tenant-admin", "tenant-administrator", "root"):
            found = await outcome_of(
                town.channels["auth"], methods[name], request, town.metadata(who)
            )
            assert found.answer is not None, (name, who, found)
            tenants = {tenant_of(record) for record in records_of(found.answer)}
            if who == "root":
                assert {TENANTS[OWN], TENANTS[OTHER]} <= tenants, (name, tenants)
            else:
                assert tenants == {TENANTS[OWN]}, (name, who, tenants)


def auth_request(method: MethodDescriptor) -> Message:
    """One that asks for everything, on one page."""
    request = getattr(auth_pb2, method.input_type.name)()
    if "page_size" in method.input_type.fields_by_name:
        request.page_size = 1000
    return request


BOUND = [(host, m) for host, m in ASKED if rule_of(m).model_bound]


@pytest.mark.parametrize(
    ("host", "method"), BOUND, ids=[described(host, method) for host, method in BOUND]
)
async def test_a_model_that_is_not_the_callers_is_as_if_it_did_not_exist(
    town: Town, host: str, method: MethodDescriptor
) -> None:
    async def asked(who: str, model: str) -> Outcome:
        request = model_requests(model)[method.name]
        return await outcome_of(town.channels[host], method, request, town.metadata(who))

    served = SERVED[host]
    there, nowhere = await asked("generate-lake", served), await asked("generate-lake", "no-such")
    assert there.code is grpc.StatusCode.PERMISSION_DENIED, there
    assert there == nowhere
    assert served not in there.message
    assert (await asked("generate-lake", LAKE)).open
    assert (await asked("generate", served)).open
    assert (await asked("generate", "no-such")).code is grpc.StatusCode.NOT_FOUND
    if "relay" in rule_of(method).any_scope and method.name != "Session":
        assert (await asked("relay-lake", served)).open


async def test_a_caller_is_shown_the_models_that_it_may_ask(town: Town) -> None:
    list_models = model_pb2.DESCRIPTOR.services_by_name["ModelService"].methods_by_name[
        "ListModels"
    ]
    shown = {}
    for who in ("generate", "generate-lake", "relay-lake", "admin"):
        found = await outcome_of(
            town.channels["router"],
            list_models,
            model_pb2.ListModelsRequest(),
            town.metadata(who),
        )
        assert isinstance(found.answer, model_pb2.ListModelsResponse)
        models: list[generation_pb2.ModelInfo] = list(found.answer.models)
        shown[who] = {model.name for model in models}
    assert shown["generate-lake"] == {LAKE}
    assert shown["generate"] == shown["relay-lake"] == shown["admin"]
    assert shown["generate"] > {LAKE, MODEL, CLOUD}
