"""Builds a router from its settings; production and tests run it alike."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from opentelemetry.metrics import Observation

from anabranch.v1 import admin_pb2_grpc, session_pb2
from services.chassis.host import Host
from services.chassis.model_streams import StreamLimits
from services.chassis.registry import Registry
from services.chassis.settings import SettingsError
from services.chassis.version import VERSION
from services.router.admin import RouterAdmin
from services.router.exchange import RoutingLimits
from services.router.handler import RouterHandler
from services.router.observation import Observer
from services.router.pool import BACKEND_SERVICES, Pool
from services.router.settings import PREFIX, SERVICE, Settings

_REMEMBERED_REQUEST_IDS = 10_000


@asynccontextmanager
async def running(settings: Settings, *, registry: Registry | None = None) -> AsyncIterator[Host]:
    """A router that serves until the context is left.

    Raises SettingsError without an identity of its own: backends let nobody in
    anonymously.
    """
    if not settings.client_id or settings.client_secret is None:
        raise SettingsError(
            [
                f"{PREFIX}CLIENT_ID and {PREFIX}CLIENT_SECRET_FILE are required: a router calls "
                "its backends as a client with the scope relay"
            ]
        )
    async with Host.open(SERVICE, settings, registry=registry) as host:
        assert host.tokens is not None, "the settings hold an identity"
        pool = Pool(
            host.tokens,
            host.tasks,
            time.monotonic,
            default_ttft_slo=settings.ttft_slo,
            max_waiting=settings.max_waiting,
        )
        handler = RouterHandler(
            pool,
            host.tokens,
            RoutingLimits(settings.max_queue_time, time.monotonic),
            Observer(host.meter, host.tracer),
            lambda: session_pb2.SessionReady(
                backend_id=host.instance_id,
                version=VERSION,
                zone=settings.zone,
            ),
        )
        host.add_model_service(
            handler,
            limits=StreamLimits(
                default_timeout=settings.default_timeout,
                session_buffer_bytes=settings.session_buffer_bytes,
            ),
            remember_ids=_REMEMBERED_REQUEST_IDS,
        )
        host.add_servicer(
            admin_pb2_grpc.add_RouterAdminServiceServicer_to_server,
            RouterAdmin(pool, handler),
            "anabranch.v1.RouterAdminService",
        )
        host.meter.create_observable_gauge(
            "anabranch.router.waiting",
            callbacks=[lambda _: [Observation(pool.waiting)]],
            description="Requests that wait for a free slot",
        )
        await host.start()
        for service in BACKEND_SERVICES:
            host.tasks.create_task(pool.follow(host.registry, service), name=f"discover-{service}")
        await host.serve()
        yield host
