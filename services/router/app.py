"""Builds a router from its settings; production and tests run it alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from opentelemetry.metrics import Observation

from anabranch.v1 import admin_pb2_grpc, session_pb2
from services.chassis.auth_client import TokenSource
from services.chassis.budgets.leases import LeaseSource, ShareOfBudget
from services.chassis.budgets.redis_leases import RedisLeases
from services.chassis.detached_sessions import ResumeLimits
from services.chassis.encryption.envelope import Envelope
from services.chassis.encryption.errors import EncryptionError
from services.chassis.encryption.keychain import Keychain
from services.chassis.host import Host
from services.chassis.model_streams import StreamLimits
from services.chassis.operations import serve_operations
from services.chassis.quotas import money
from services.chassis.quotas.gate import QuotaGate
from services.chassis.quotas.money import LeasesByKind
from services.chassis.redis_connection import redis_client
from services.chassis.registry import Registry
from services.chassis.settings import SettingsError
from services.chassis.tasks import Tasks
from services.chassis.tls import Tls
from services.chassis.version import VERSION
from services.chassis.workers import Worker
from services.router.admin import RouterAdmin
from services.router.admin_of_all import AdminOfAll
from services.router.audited_admin import AuditedAdmin
from services.router.backend_metrics import observe_backends
from services.router.core.policy import AdmissionRules, Objective, Policy
from services.router.decisions import Decisions
from services.router.feedback.intake import Feedback
from services.router.feedback.stores import open_answers
from services.router.handler import RouterHandler
from services.router.legs import Routing
from services.router.observation import Observer
from services.router.policy.sources import open_source
from services.router.policy.store import PolicyStore
from services.router.policy_updates import PolicyUpdates
from services.router.pool import BACKEND_SERVICES, WORKERS, Pool
from services.router.response_cache.cache import ResponseCache
from services.router.response_cache.metrics import observe_cache
from services.router.response_cache.stored_form import SealedForm
from services.router.response_cache.stores import open_stores
from services.router.session_metrics import observe_sessions
from services.router.settings import PREFIX, SERVICE, Settings
from services.router.spending import LEASES_PREFIX, Spending
from services.router.waiting_line import WaitingLine

_REMEMBERED_REQUEST_IDS = 10_000
_CONNECT_S = 1.0


@asynccontextmanager
async def running(
    settings: Settings, *, registry: Registry | None = None, worker: Worker | None = None
) -> AsyncIterator[Host]:
    """A router that serves until the context is left; with `worker`, as one of several processes.

    Raises SettingsError without an identity of its own: backends let nobody in
    anonymously; and with every fault of a policy or keychain that cannot be used.
    """
    if not settings.client_id or settings.client_secret is None:
        raise SettingsError(
            [
                f"{PREFIX}CLIENT_ID and {PREFIX}CLIENT_SECRET_FILE are required: a router calls "
                "its backends as a client with the scope relay"
            ]
        )
    policies = PolicyStore(_default_policy(settings))
    sealed = await asyncio.to_thread(_sealed_form, settings)
    async with (
        redis_client(settings.redis_url, f"{PREFIX}REDIS_URL") as redis,
        open_stores(
            memory_bytes=settings.cache_memory_bytes,
            redis=redis,
            directory=settings.cache_dir,
            disk_bytes=settings.cache_disk_bytes,
            sealed=sealed,
        ) as stores,
        open_answers(
            redis, most=settings.feedback_answers, window=settings.feedback_window
        ) as answers,
        Host.open(SERVICE, settings, registry=registry, worker=worker) as host,
        open_source(
            settings.policy_place,
            policies,
            registry=settings.registry,
            registry_token=settings.registry_token,
            worker=worker,
        ) as policy_source,
    ):
        assert host.tokens is not None, "the settings hold an identity"
        workers = settings.workers or 1
        leases: LeaseSource = ShareOfBudget(workers, time.time)
        if redis is not None:
            leases = LeasesByKind(
                quotas=RedisLeases(redis, time.time, prefix=money.LEASES_PREFIX),
                others=RedisLeases(redis, time.time, prefix=LEASES_PREFIX),
            )
        routing = assemble(host.tokens, host.tasks, policies.current, leases, tls=host.tls)
        pool = routing.pool
        cache = ResponseCache(
            routing.decisions.policy_now, stores, time.time, routing.loop.time, pool.weights
        )
        handler = RouterHandler(
            routing,
            host.tokens,
            Observer(
                host.meter,
                host.tracer,
                is_served=routing.decisions.serves,
            ),
            lambda: session_pb2.SessionReady(
                backend_id=host.instance_id,
                version=VERSION,
                zone=settings.zone,
            ),
            cache,
            Feedback(answers, host.meter) if answers is not None else None,
        )
        model_service = host.add_model_service(
            handler,
            relays=False,  # callers come in here; who speaks for others is written down beside them
            limits=StreamLimits(
                default_timeout=settings.default_timeout,
                session_buffer_bytes=settings.session_buffer_bytes,
            ),
            remember_ids=_REMEMBERED_REQUEST_IDS,
            quotas=QuotaGate(redis, lambda: max(pool.peers, workers)),
            resume=ResumeLimits(
                window=settings.session_resume_window,
                most_detached=settings.max_detached_sessions,
            ),
        )
        updates = PolicyUpdates(policies, policy_source)
        admin = RouterAdmin(routing, handler, updates)
        add_admin = admin_pb2_grpc.add_RouterAdminServiceServicer_to_server
        of_all = AdminOfAll(routing, handler, updates, worker) if worker is not None else None
        if of_all is not None:
            # What a sibling asks is asked of this worker alone, so no question goes round.
            host.add_private_servicer(add_admin, admin)
        audited = AuditedAdmin(of_all or admin, host.audit)
        host.add_servicer(add_admin, audited, "anabranch.v1.RouterAdminService")
        serve_operations(host)
        host.meter.create_observable_gauge(
            "anabranch.router.waiting",
            callbacks=[lambda _: [Observation(len(routing.line))]],
            description="Requests that wait for a free slot",
        )
        observe_backends(host.meter, pool.known, routing.clock)
        observe_sessions(host.meter, model_service.resumable)
        observe_cache(host.meter, cache)
        policies.observe(host.meter)
        policies.subscribe(lambda _: routing.line.changed())
        await host.start()
        if of_all is not None:
            of_all.follow_shared()
        await policy_source.start()
        host.tasks.create_task(policy_source.follow(), name="policy")
        for service in BACKEND_SERVICES:
            host.tasks.create_task(pool.follow(host.registry, service), name=f"discover-{service}")
        host.set_meta({WORKERS: str(workers)})
        host.tasks.create_task(pool.count_peers(host.registry, workers), name="count-peers")
        host.tasks.create_task(pool.look_for_silence(), name="look-for-silence")
        host.tasks.create_task(routing.spending.keep_supplied(), name="cloud-budgets")
        if worker is not None:
            # Callers reach it from the moment it serves, and others stop because it does.
            await _connected(pool)
        await host.serve()
        yield host


def running_worker(settings: Settings, worker: Worker) -> AbstractAsyncContextManager[Host]:
    """A router as one of several processes."""
    return running(settings, worker=worker)


def _sealed_form(settings: Settings) -> SealedForm | None:
    """How answers are stored; None when no keys are given. Raises SettingsError."""
    if settings.encryption_keys_file is None:
        return None
    try:
        return SealedForm(Envelope(Keychain.read(settings.encryption_keys_file)))
    except EncryptionError as refused:
        raise SettingsError([f"{PREFIX}ENCRYPTION_KEYS_FILE: {refused}"]) from None


def _default_policy(settings: Settings) -> Policy:
    """What holds where no document says otherwise."""
    return Policy(
        objective=Objective(ttft=settings.ttft_slo),
        admission=AdmissionRules(
            max_waiting=settings.max_waiting, max_wait=settings.max_queue_time
        ),
    )


def assemble(
    tokens: TokenSource,
    tasks: Tasks,
    policy: Callable[[], Policy],
    leases: LeaseSource,
    *,
    seed: int | None = None,
    tls: Tls | None = None,
) -> Routing:
    """What the requests of a router share, each part told of the others' changes."""
    clock = time.monotonic
    pool = Pool(tokens, tasks, clock, seed=seed, tls=tls)
    decisions = Decisions(pool, policy, clock, seed)
    line = WaitingLine(lambda: decisions.policy_now().admission, clock)
    spending = Spending(policy, leases, time.time)
    pool.on_change = spending.supply.on_change = line.changed
    return Routing(pool, decisions, line, spending, clock)


async def _connected(pool: Pool) -> None:
    """Waits until the pool can use what there is, but not for long: backends may be down."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_CONNECT_S):
            while not pool.is_connected(BACKEND_SERVICES):  # noqa: ASYNC110 - for some 100 ms
                await asyncio.sleep(0.01)
