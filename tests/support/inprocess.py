"""A whole cluster in one process and one event loop: real services, real sockets, port 0.

Every service runs through its production `app.running()`. Only the registry is
replaced, by one in memory that all of them share.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import grpc

from anabranch.v1 import admin_pb2, admin_pb2_grpc, auth_pb2, auth_pb2_grpc, model_pb2_grpc
from services.auth import app as auth_app
from services.auth import settings as auth_settings
from services.chassis.channels import open_channel
from services.chassis.host import Host
from services.chassis.quotas.rules import QuotaRule, Subject, Unit
from services.chassis.settings import Secret
from services.cloud_proxy import app as cloud_app
from services.cloud_proxy import settings as cloud_settings
from services.local_engine import app as engine_app
from services.local_engine import settings as engine_settings
from services.local_engine.simulation.engine import SimEngine
from services.router import app as router_app
from services.router import settings as router_settings
from tests.support import tls
from tests.support.auth import bearer, until

_names = itertools.count(1)
MODEL = "sim-river"


@dataclass
class Engine:
    """One running sim engine; `stop` ends it in the production order.

    A test slows its simulation until what it waits for has happened: then no answer is over before.
    """

    host: Host
    stack: AsyncExitStack
    simulation: SimEngine

    async def stop(self) -> None:
        await self.stack.aclose()


@dataclass
class Cluster:
    """Addresses, credentials and ways in."""

    directory: Path
    registry: str
    stack: AsyncExitStack
    auth: Host
    admin_secret: str
    router: Host | None = None
    engines: list[Engine] = field(default_factory=list)
    cloud: Host | None = None
    certificates: Path | None = None

    async def token(self, client_id: str = "admin", secret: str = "") -> str:
        async with self.channel(self.auth) as channel:
            issued = await auth_pb2_grpc.AuthServiceStub(channel).IssueToken(
                auth_pb2.IssueTokenRequest(
                    client_id=client_id, client_secret=secret or self.admin_secret
                )
            )
        return str(issued.access_token)

    async def new_client(self, client_id: str, *scopes: str, tenant: str = "shop") -> str:
        """Creates a client and returns its secret."""
        async with self.channel(self.auth) as channel:
            created = await auth_pb2_grpc.AuthServiceStub(channel).CreateClient(
                auth_pb2.CreateClientRequest(client_id=client_id, tenant=tenant, scopes=scopes),
                metadata=bearer(await self.token()),
            )
        return str(created.client_secret)

    async def set_tenant(self, name: str, **how: Any) -> None:
        """Says how a tenant's requests are audited and encrypted; fields of auth.proto's Tenant."""
        async with open_channel(self.auth.address) as channel:
            await auth_pb2_grpc.AuthServiceStub(channel).SetTenant(
                auth_pb2.SetTenantRequest(tenant=auth_pb2.Tenant(name=name, **how)),
                metadata=bearer(await self.token()),
            )

    async def set_quota(self, tenant: str, client_id: str, rule: QuotaRule) -> None:
        """Gives a tenant, or a client of it, a quota that holds from the next tokens."""
        unit = {
            Unit.REQUESTS: auth_pb2.QUOTA_UNIT_REQUESTS,
            Unit.TOKENS: auth_pb2.QUOTA_UNIT_TOKENS,
            Unit.COST: auth_pb2.QUOTA_UNIT_COST_MICROUSD,
        }[rule.unit]
        quota = auth_pb2.Quota(
            tenant=tenant,
            client_id=client_id if rule.subject is Subject.CLIENT else "",
            model=rule.model,
            unit=unit,
            limit=rule.limit,
            burst=rule.burst,
        )
        quota.period.FromSeconds(rule.period)
        async with open_channel(self.auth.address) as channel:
            await auth_pb2_grpc.AuthServiceStub(channel).SetQuota(
                auth_pb2.SetQuotaRequest(quota=quota), metadata=bearer(await self.token())
            )

    def channel(self, host: Host) -> grpc.aio.Channel:
        if self.certificates is None:
            return open_channel(host.address)
        return open_channel(host.address, credentials=tls.credentials(self.certificates))

    async def add_engine(self, **changes: Any) -> Engine:
        stack = AsyncExitStack()
        settings = engine_settings.Settings(
            engine="sim",
            served_model_name=changes.pop("model", MODEL),
            **(self.common(f"engine-{next(_names)}") | changes),
        )
        simulation = engine_app.make_engine(settings)
        assert isinstance(simulation, SimEngine)
        host = await stack.enter_async_context(engine_app.running(settings, engine=simulation))
        engine = Engine(host, stack, simulation)
        self.engines.append(engine)
        self.stack.push_async_callback(engine.stop)
        return engine

    async def add_cloud(self, models_file: Path, **changes: Any) -> Host:
        settings = cloud_settings.Settings(
            **self.common(f"cloud-{next(_names)}"), models_file=models_file, **changes
        )
        self.cloud = await self.stack.enter_async_context(cloud_app.running(settings))
        return self.cloud

    async def add_router(self, **changes: Any) -> Host:
        self.router = await self.stack.enter_async_context(self.one_more_router(**changes))
        return self.router

    @asynccontextmanager
    async def one_more_router(self, *, patient: bool = True, **changes: Any) -> AsyncIterator[Host]:
        """A router that ends before the cluster does; a patient one lets nobody go because a line
        stands."""
        name = f"router-{next(_names)}"
        secret = await self.new_client(name, "relay", tenant="operators")
        if patient:
            changes.setdefault("max_queue_time", 600.0)
        settings = router_settings.Settings(
            client_id=name, client_secret=Secret(secret), **(self.common(name) | changes)
        )
        policy = router_app._default_policy(settings)
        if patient:
            policy = replace(policy, admission=replace(policy.admission, codel_interval=600.0))
        async with AsyncExitStack() as stack:
            with mock.patch.object(router_app, "_default_policy", return_value=policy):
                host = await stack.enter_async_context(router_app.running(settings))
            yield host

    def lets_callers_pause(self) -> None:
        """The router cuts nobody for not reading for a while: a busy machine makes it long."""
        assert self.router is not None
        assert self.router.model_service is not None
        requests = self.router.model_service.requests
        requests.limits = replace(requests.limits, write_stall=600.0)

    async def backends(self) -> list[admin_pb2.BackendStatus]:
        assert self.router is not None
        async with self.channel(self.router) as channel:
            listed = await admin_pb2_grpc.RouterAdminServiceStub(channel).ListBackends(
                admin_pb2.ListBackendsRequest(), metadata=bearer(await self.token())
            )
        return list(listed.backends)

    async def backends_ready(self, count: int) -> None:
        async def ready() -> bool:
            states = [backend.state for backend in await self.backends()]
            return states.count(admin_pb2.BACKEND_STATE_READY) == count

        await until(ready)

    def common(self, service_id: str) -> dict[str, Any]:
        service = f"anabranch-{service_id.partition('-')[0]}"
        secured = tls.settings(self.certificates, service) if self.certificates else {}
        return {
            **secured,
            "listen": "127.0.0.1:0",
            "http_listen": "127.0.0.1:0",
            "registry": self.registry,
            "service_id": service_id,
            "drain_timeout": 60.0,
        }


@asynccontextmanager
async def cluster(
    directory: Path,
    *,
    engines: Sequence[dict[str, Any]] = ({},),
    router: dict[str, Any] | None = None,
    certificates: Path | None = None,
) -> AsyncIterator[Cluster]:
    """Auth, sim engines and a router, ready; the cloud proxy is added where wanted.

    `certificates`: a directory that tools.certs made; all of them demand one of their callers.
    """
    registry = f"memory:{directory}-{next(_names)}"
    secret_file = directory / "admin-secret"
    async with AsyncExitStack() as stack:
        auth = await stack.enter_async_context(
            auth_app.running(
                auth_settings.Settings(
                    listen="127.0.0.1:0",
                    http_listen="127.0.0.1:0",
                    registry=registry,
                    data_dir=directory / "auth",
                    bootstrap_secret_file=secret_file,
                    drain_timeout=1.0,
                    **(tls.settings(certificates, auth_app.SERVICE) if certificates else {}),
                )
            )
        )
        running = Cluster(directory, registry, stack, auth, secret_file.read_text().strip())
        running.certificates = certificates
        for changes in engines:
            await running.add_engine(**changes)
        await running.add_router(**(router or {}))
        await running.backends_ready(len(engines))
        yield running


def model_stub(channel: grpc.aio.Channel) -> model_pb2_grpc.ModelServiceStub:
    return model_pb2_grpc.ModelServiceStub(channel)
