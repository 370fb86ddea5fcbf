"""Composes the local engine: the engine, its handler and the host, in order. Nothing else."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.chassis.authn import KeySource
from services.chassis.host import Host
from services.chassis.operations import serve_operations
from services.chassis.quotas.gate import QuotaGate
from services.chassis.redis_connection import redis_client
from services.chassis.registry import Registry
from services.chassis.version import VERSION
from services.local_engine.engine import Engine
from services.local_engine.engine_metrics import EngineMetrics, VllmCollector, observe_load
from services.local_engine.handler import BackendIdentity, EngineHandler
from services.local_engine.hang_watch import CONCERN, HangWatch
from services.local_engine.on_vllm.engine import VllmEngine
from services.local_engine.on_vllm.options import VllmOptions, further_arguments
from services.local_engine.settings import Settings
from services.local_engine.simulation.engine import H100_LLAMA_8B, SimEngine, SimOptions
from services.local_engine.simulation.model import SimLimits
from services.local_engine.slow_spells import slow_spells
from services.local_engine.step_model import StepModel

SERVICE = "anabranch-engine"

_log = logging.getLogger(__name__)


class EngineLost(Exception):
    """The engine died, or hangs. The process ends, so that its supervisor starts another."""


@asynccontextmanager
async def running(
    settings: Settings,
    *,
    registry: Registry | None = None,
    key_source: KeySource | None = None,
    engine: Engine | None = None,
) -> AsyncIterator[Host]:
    """Runs the service; yields once the model is loaded and requests are taken.

    Until then the process listens and is alive, but neither started nor ready. `registry`,
    `key_source` and `engine` replace what the settings name. Raises EngineStartError when loading
    fails and EngineLost, in an ExceptionGroup, when the engine dies later or hangs for too long.
    """
    engine = engine or make_engine(settings)
    meta = {
        "tier": "local",
        "models": ",".join(settings.names),
        "engine": settings.engine,
        "capacity": str(settings.max_num_seqs),
    }
    try:
        async with (
            redis_client(settings.redis_url, "ANABRANCH_ENGINE_REDIS_URL") as redis,
            Host.open(
                SERVICE, settings, meta=meta, registry=registry, key_source=key_source
            ) as host,
        ):
            hang = HangWatch(
                engine,
                host.health,
                hang_after=settings.hang_after,
                hang_exit=settings.hang_exit,
            )
            hang.observe(host.meter)
            handler = EngineHandler(
                engine,
                names=settings.names,
                identity=lambda: BackendIdentity(host.instance_id, VERSION, settings.zone),
                draining=lambda: service.requests.draining,
                hung=lambda: hang.hung,
                metrics=EngineMetrics(host.meter),
                tracer=host.tracer,
                max_waiting=settings.max_waiting,
            )
            service = host.add_model_service(handler, quotas=QuotaGate(redis))
            serve_operations(host)
            await host.start()
            await engine.start()
            observe_load(host.meter, engine.load)
            if settings.engine == "vllm":
                host.telemetry.registry.register(VllmCollector())
            for lane in range(EngineHandler.LANES):
                host.tasks.create_task(handler.encode_requests(lane), name=f"encode-{lane}")
            host.tasks.create_task(_stop_when_lost(engine, host), name="engine-watch")
            host.tasks.create_task(_stop_when_hopeless(hang, engine, host), name="hang-watch")
            await host.serve()
            yield host
    finally:
        await engine.close()


def make_engine(settings: Settings) -> Engine:
    """The engine that the settings ask for, not started."""
    pace = StepModel.parse(settings.step_model) if settings.step_model else None
    if settings.engine == "sim":
        options = SimOptions(
            name=settings.names[0],
            context_length=settings.max_model_len or 32_768,
            limits=SimLimits(
                max_running=settings.max_num_seqs,
                prefill_budget=settings.max_num_batched_tokens or 2048,
                kv_tokens=settings.sim_kv_tokens,
            ),
            pace=pace or H100_LLAMA_8B,
            speed=settings.sim_speed,
            mean_output_tokens=settings.sim_output_tokens,
            load_seconds=settings.sim_load_seconds,
            slow_spells=slow_spells(settings.sim_slow_spells),
            prefix_events=settings.prefix_events,
        )
        simulation = SimEngine(options)
        simulation.slowdown = settings.sim_slowdown
        return simulation
    return VllmEngine(
        VllmOptions(
            model=settings.model,
            name=settings.names[0],
            dtype=settings.dtype,
            max_num_seqs=settings.max_num_seqs,
            max_model_len=settings.max_model_len,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            tensor_parallel_size=settings.tensor_parallel_size,
            pipeline_parallel_size=settings.pipeline_parallel_size,
            kv_cache_gib=settings.cpu_kv_cache_gib,
            cpu_threads=settings.cpu_threads,
            enforce_eager=settings.enforce_eager,
            seed=settings.seed,
            prefix_events=settings.prefix_events,
            step_model=pace,
            quantization=settings.quantization,
            tuning=settings.tuning,
            further=further_arguments(settings.vllm_args),
        )
    )


async def _stop_when_lost(engine: Engine, host: Host) -> None:
    reason = await engine.lost()
    _log.error("engine lost", extra={"cause": reason})
    host.health.trouble(CONCERN, reason, restart=True)
    await host.stop_serving(reason)
    raise EngineLost(reason)


async def _stop_when_hopeless(hang: HangWatch, engine: Engine, host: Host) -> None:
    reason = await hang.hopeless()
    _log.error("engine given up", extra={"cause": reason})
    # First out of the registry: what fails next is resumed, and not here.
    await host.stop_serving(reason)
    engine.give_up(reason)
    raise EngineLost(reason)
