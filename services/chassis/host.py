"""The composition of one service process: server, health, reflection, HTTP, registration.

`Host.open` nests every resource and, on the way out, shuts down in order:
not ready, deregister, GoAway, drain, stop, flush. Each service's app.py uses
it, in production and in tests alike. What the service does is not known here.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
from opentelemetry.metrics import Meter

from services.chassis.api_key_exchange import KeyExchange
from services.chassis.audit.refusals import Refusals
from services.chassis.audit.requests import RequestAudit
from services.chassis.audit.trail import Trail
from services.chassis.audit.wiring import content_sealer, open_trail
from services.chassis.auth_client import AuthClient, TokenSource
from services.chassis.authn import KeySource, Verifier
from services.chassis.caller_sampling import CallerSampling
from services.chassis.common_settings import CommonSettings
from services.chassis.detached_sessions import ResumeLimits
from services.chassis.guard import OnRefusal
from services.chassis.health import Health
from services.chassis.host_telemetry import telemetry_of
from services.chassis.http_endpoint import HttpEndpoint
from services.chassis.model_handler import ModelHandler
from services.chassis.model_service import SERVICE_NAME, ModelService
from services.chassis.model_streams import StreamLimits
from services.chassis.ports import (
    registration,
    require_address,
    told_address,
    warn_of_certificates,
)
from services.chassis.quotas.gate import QuotaGate
from services.chassis.registry import Freshness, Registration, Registry, open_registry
from services.chassis.servers import Servers
from services.chassis.tasks import Tasks
from services.chassis.telemetry import Telemetry
from services.chassis.tls import Tls, https_of
from services.chassis.tracing import RequestTracer
from services.chassis.version import VERSION
from services.chassis.workers.retirement import retire
from services.chassis.workers.worker import Worker

_log = logging.getLogger(__name__)

# What is left after the drain gets this long to end by itself before it is cut.
_STOP_GRACE_S = 1.0
_AUDIT_S = 5.0


class Host:
    """One service process between `open` and its shutdown.

    Order of use: add services, `start`, load what must be loaded, `serve`.
    """

    def __init__(
        self,
        service: str,
        settings: CommonSettings,
        *,
        meta: Mapping[str, str],
        telemetry: Telemetry,
        registry: Registry,
        verifier: Verifier,
        tokens: TokenSource | None,
        tasks: Tasks,
        http: HttpEndpoint,
        health: Health,
        audit: Trail,
        on_refusal: OnRefusal | None = None,
        worker: Worker | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.service = service
        self.settings = settings
        self.telemetry = telemetry
        self.registry = registry
        self.verifier = verifier
        self.tokens = tokens
        self.tasks = tasks
        self.http = http
        self.audit = audit
        self._sealer = content_sealer(settings)
        self.worker = worker
        self.tls = tls
        self.address = ""
        self.instance_id = settings.service_id
        self.model_service: ModelService | None = None
        self._meta = dict(meta)
        self._services: list[str] = []
        self._registered = False
        self._registering = asyncio.Lock()
        self.health = health
        self._duration = telemetry.meter.create_histogram(
            "rpc.server.duration", unit="s", description="Duration of finished RPCs"
        )
        self._servers = Servers(
            settings,
            verifier,
            tls=tls,
            worker=worker,
            observer=self._observe,
            on_refusal=on_refusal or Refusals(audit),
        )
        self._server = self._servers.callers

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        service: str,
        settings: CommonSettings,
        *,
        meta: Mapping[str, str] | None = None,
        registry: Registry | None = None,
        key_source: KeySource | None = None,
        exchange: KeyExchange | None = None,
        on_refusal: OnRefusal | None = None,
        worker: Worker | None = None,
        clock: Callable[[], float] = time.time,
    ) -> AsyncIterator[Host]:
        """Opens what every service stands on; leaving shuts it down in order.

        `registry` replaces the one that the settings name (tests share one);
        `key_source` and `exchange` replace the auth service as the origin of verification keys
        and of tokens for API keys, `on_refusal` the trail as who hears of callers that are turned
        away. `worker`: this process is one of several that share the
        address. `clock` returns the unix seconds by which credentials are judged.
        Raises what a background task raised, as an ExceptionGroup, and SettingsError when the
        certificate files cannot be used.
        """
        tls = await asyncio.to_thread(Tls.open, settings)
        health = Health()
        own_registry = registry is None
        freshness = Freshness()
        registry = registry or open_registry(
            settings.registry,
            token=settings.registry_token,
            stale_for=settings.registry_stale_for,
            freshness=freshness,
        )
        auth = AuthClient(settings.auth_target, registry, tls)
        telemetry = telemetry_of(service, settings, None if worker is None else worker.index)
        freshness.observe(telemetry.meter)
        verifier = Verifier(
            key_source or auth,
            issuer=settings.issuer,
            audience=settings.audience,
            clock=clock,
            exchange=exchange or (auth if key_source is None else None),
        )
        tokens = None
        if settings.client_id and settings.client_secret is not None:
            tokens = TokenSource(auth, settings.client_id, settings.client_secret)
        try:
            async with (
                open_trail(service, settings, telemetry.meter) as audit,
                asyncio.TaskGroup() as group,
            ):
                tasks = Tasks(group)
                host = cls(
                    service,
                    settings,
                    meta=meta or {},
                    telemetry=telemetry,
                    registry=registry,
                    verifier=verifier,
                    tokens=tokens,
                    tasks=tasks,
                    http=HttpEndpoint(
                        settings.http_listen,
                        metrics=telemetry.prometheus_text,
                        ask=health.ask,
                        openmetrics=telemetry.openmetrics_text,
                        tls=https_of(settings, tls),
                    ),
                    health=health,
                    audit=audit,
                    on_refusal=on_refusal,
                    worker=worker,
                    tls=tls,
                )
                tasks.create_task(audit.run(), name="audit")
                if tls is not None:
                    tls.observe(telemetry.meter)
                    tls.on_renewed(host._renew_tls)
                    tasks.create_task(tls.follow(), name="certificates")
                if key_source is None:
                    tasks.create_task(auth.follow(), name="auth-address")
                tasks.create_task(verifier.keep_fresh(), name="verification-keys")
                try:
                    yield host
                finally:
                    await host._shut_down()
                    await audit.finish(_AUDIT_S)
                    tasks.cancel_all()
        finally:
            await verifier.close()
            await auth.close()
            if own_registry:
                await registry.close()
            await telemetry.close()

    @property
    def meter(self) -> Meter:
        """Where the service creates its instruments."""
        return self.telemetry.meter

    @property
    def tracer(self) -> RequestTracer:
        """Where the service starts its spans."""
        return self.telemetry.requests

    @property
    def health_address(self) -> str:
        """host:port of the plaintext health port, once started; empty without one."""
        return self._servers.health_address

    @property
    def http_address(self) -> str:
        """host:port of the HTTP endpoint, once started."""
        return self.http.address

    def add_model_service(
        self,
        handler: ModelHandler,
        *,
        limits: StreamLimits | None = None,
        remember_ids: int = 0,
        resume: ResumeLimits | None = None,
        quotas: QuotaGate | None = None,
        relays: bool = True,
    ) -> ModelService:
        """Serves ModelService with this handler, to callers within their `quotas`. Before `start`.

        With `relays`, what others bring here for their callers is in their audit trails, not in
        this one.
        """
        if quotas is not None:
            quotas.observe(self.meter)
            self.tasks.create_task(quotas.run(), name="quotas")
        self.model_service = ModelService(
            handler,
            self.verifier,
            limits=limits,
            remember_ids=remember_ids,
            resume=resume,
            worker=self.worker,
            audit=RequestAudit(self.audit, self._sealer, relays=relays),
            quotas=quotas,
            sampling=CallerSampling(self.settings.trace_callers_per_second),
        )
        if self._servers.siblings is not None:
            of_siblings = self.model_service.sibling_handler()
            self._servers.siblings.add_generic_rpc_handlers((of_siblings,))
        self._server.add_generic_rpc_handlers((self.model_service.generic_handler(),))
        self._services.append(SERVICE_NAME)
        return self.model_service

    def add_servicer(
        self, add: Callable[[Any, Any], None], servicer: object, full_name: str
    ) -> None:
        """Serves another service: its generated add function, servicer and full name."""
        add(servicer, self._server)
        self._services.append(full_name)

    def add_private_servicer(self, add: Callable[[Any, Any], None], servicer: object) -> None:
        """Serves a service to the sibling workers alone. Only in a worker, before `start`."""
        assert self._servers.siblings is not None, "there are no siblings"
        add(servicer, self._servers.siblings)

    def set_meta(self, meta: Mapping[str, str]) -> None:
        """Adds to what the registry tells about this process. Before `serve`."""
        self._meta.update(meta)

    async def tell(self, meta: Mapping[str, str]) -> None:
        """As `set_meta`, at any time: the registry hears of it, and its health check goes on."""
        self.set_meta(meta)
        async with self._registering:
            if self._registered:
                await self.registry.register(self._registration())

    async def start(self) -> None:
        """Binds and answers; health says alive, but neither started nor ready, until `serve`.

        A worker answers its siblings alone: the kernel would bring it callers at once.
        """
        self._servers.describe(self.health, self._services)
        require_address(self.settings)
        if self.tls is not None:
            warn_of_certificates(self.service, self.settings, self.tls)
        if self.worker is None:
            self.address = await self._servers.open()
            await self.http.start()
        else:
            self.address = self.settings.listen
            await self._servers.open_for_siblings(self.worker)
            await self.http.start()
            await self.worker.reachable()
        if not self.instance_id:
            told = told_address(self.settings, self.address)
            self.instance_id = f"{self.service}-{re.sub('[^A-Za-z0-9.]+', '-', told)}"
        _log.info(
            "listening",
            extra={"address": self.address, "http": self.http_address, "id": self.instance_id},
        )

    async def serve(self) -> None:
        """Says SERVING and registers. Call it once the service can answer."""
        if self.model_service is not None:
            self.model_service.open_for_work()
        self.health.started()
        if self.worker is not None:
            await self._servers.open()
        if self.worker is not None:
            self.worker.serving(self._registration())
        else:
            async with self._registering:
                self._registered = True
                await self.registry.register(self._registration())
        _log.info("serving", extra={"id": self.instance_id})

    async def stop_serving(self, reason: str) -> None:
        """Says that it is not ready and leaves the registry, for good. Running requests go on."""
        was_registered, self._registered = self._registered, False
        self.health.leaves(reason)
        if was_registered:
            async with self._registering:
                await self.registry.deregister(self.instance_id)
        _log.info("not serving", extra={"id": self.instance_id, "cause": reason})

    def _registration(self) -> Registration:
        return registration(
            self.service,
            self.instance_id,
            self.settings,
            address=self.address,
            health=self._servers.health_address,
            tls=self.tls is not None,
            meta={"version": VERSION, "zone": self.settings.zone, **self._meta},
        )

    async def _shut_down(self) -> None:
        limit = self.settings.drain_timeout
        if self.worker is not None and self.worker.retiring and self.health.is_ready:
            self._servers.leave_probes_to_siblings()
            await retire(self.worker, self._server, self.model_service, limit)
        await self.stop_serving("shutting down")
        if self.model_service is not None:
            self.model_service.go_away(limit, "shutting down")
            try:
                async with asyncio.timeout(limit):
                    await self.model_service.requests.wait_idle()
            except TimeoutError:
                _log.warning(
                    "drain time is over", extra={"cut_off": len(self.model_service.requests)}
                )
        await self._servers.stop(_STOP_GRACE_S)
        await self.http.close()
        _log.info("stopped", extra={"id": self.instance_id})

    async def _renew_tls(self, authorities_changed: bool) -> None:
        if authorities_changed:
            # Whom the former authorities vouched for may finish, and must prove itself anew.
            self._server.send_away("the trusted authorities have changed")

    def _observe(self, method: str, code: grpc.StatusCode, seconds: float) -> None:
        self._duration.record(
            seconds, {"rpc.method": method.lstrip("/"), "rpc.grpc.status_code": code.name}
        )
