"""Composes the cloud proxy: the one place where its collaborators are constructed."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from anabranch.v1 import session_pb2
from services.chassis.authn import KeySource
from services.chassis.host import Host
from services.chassis.operations import serve_operations
from services.chassis.quotas.gate import QuotaGate
from services.chassis.redis_connection import redis_client
from services.chassis.registry import Registry
from services.chassis.version import VERSION
from services.cloud_proxy.attempts import Attempts
from services.cloud_proxy.budgets import open_budgets
from services.cloud_proxy.candidates import Directory
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialect_table import DIALECTS
from services.cloud_proxy.handler import CloudProxy
from services.cloud_proxy.http_session import Proxy, open_http
from services.cloud_proxy.key_reload import open_keys
from services.cloud_proxy.masking.request import Masker
from services.cloud_proxy.observe import Observer
from services.cloud_proxy.retries import RetryPolicy
from services.cloud_proxy.settings import Settings
from services.cloud_proxy.upstream import Caps, Timers, Upstream

_log = logging.getLogger(__name__)

SERVICE = "anabranch-cloud"
_LONGEST_META = 512


@asynccontextmanager
async def running(
    settings: Settings,
    *,
    registry: Registry | None = None,
    key_source: KeySource | None = None,
    epoch_clock: Callable[[], float] = time.time,
) -> AsyncIterator[Host]:
    """The cloud proxy, serving until the context is left.

    `registry` and `key_source` stand in for what the settings name, in tests of one process;
    `epoch_clock`, in seconds, says which period of a budget it is.
    """
    routes = settings.routes()
    rules = settings.budgets()
    _warn(routes, settings)
    timers = Timers(
        first_token=settings.first_token_timeout,
        inter_token=settings.inter_token_timeout,
        total=settings.total_timeout,
    )
    proxy = Proxy(settings.https_proxy, settings.no_proxy)
    # The session outlives the host: its last requests end while the host drains.
    async with (
        open_http(
            settings.connect_timeout,
            settings.ca_file,
            connections=settings.max_in_flight,
            proxy=proxy,
        ) as http,
        redis_client(settings.redis_url, "ANABRANCH_CLOUD_REDIS_URL") as redis,
        Host.open(
            SERVICE,
            settings,
            meta=_meta(routes, settings),
            registry=registry,
            key_source=key_source,
        ) as host,
    ):
        keys = open_keys(routes.values(), settings.keys(), asyncio.get_running_loop().time)
        keys.observe(host.meter)
        attempts = Attempts(
            Upstream(
                http,
                timers=timers,
                caps=Caps(response=settings.max_response_bytes, line=settings.max_line_bytes),
            ),
            keys.pools,
            retry=RetryPolicy(attempts=settings.attempts, longest_wait=settings.longest_retry_wait),
            random=random.random,
        )

        def identity() -> session_pb2.SessionReady:
            return session_pb2.SessionReady(
                backend_id=host.instance_id,
                version=VERSION,
                zone=settings.zone,
            )

        budgets = open_budgets(rules, redis, epoch_clock)
        budgets.observe(host.meter)
        serve_operations(host)
        host.add_model_service(
            CloudProxy(
                Directory(routes, DIALECTS),
                attempts,
                Masker(settings.masked_kinds(), secrets.randbits),
                Observer(host.meter, host.tracer),
                budgets,
                host.tasks,
                identity=identity,
                max_in_flight=settings.max_in_flight,
                image_hosts=frozenset(settings.image_hosts),
                gather=settings.gather,
            ),
            quotas=QuotaGate(redis),
        )
        if settings.warm:
            urls = [route.base_url for route in routes.values()]
            host.tasks.create_task(http.warm(urls), name="warm connections")
        await host.start()
        host.tasks.create_task(budgets.keep_supplied(), name="budgets")
        if keys.files:
            polling = keys.follow(settings.keys_poll_interval)
            host.tasks.create_task(polling, name="provider keys")
        await host.serve()
        yield host


def _meta(routes: Mapping[str, Route], settings: Settings) -> dict[str, str]:
    names = sorted(name for r in routes.values() for name in (r.name, *r.aliases))
    return {
        "tier": "cloud",
        "models": _listed(names),
        "provider": _listed(sorted({r.profile.name for r in routes.values()})),
        "capacity": str(settings.max_in_flight),
    }


def _listed(names: Sequence[str]) -> str:
    """As many whole names as the registry takes in one value; a session's greeting has them all."""
    text = ",".join(names)
    if len(text) > _LONGEST_META:
        text = text[: _LONGEST_META + 1].rpartition(",")[0]
    return text


def _warn(routes: Mapping[str, Route], settings: Settings) -> None:
    if not settings.masked_kinds():
        _log.warning("prompts leave as they are: nothing is masked but what a router asks for")
    for route in routes.values():
        facts = {"model": route.name, "provider": route.profile.name}
        if route.model.prices is None:
            _log.warning("no prices: costs are counted as 0", extra=facts)
        if route.profile.simulated:
            _log.warning("answers come from the provider simulator, not a model", extra=facts)
