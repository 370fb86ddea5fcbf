"""Composes the local engine: the engine, its handler and the host, in order. Nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anabranch.v1 import model_admin_pb2_grpc
from services.chassis.authn import KeySource
from services.chassis.host import Host
from services.chassis.operations import serve_operations
from services.chassis.quotas.gate import QuotaGate
from services.chassis.redis_connection import redis_client
from services.chassis.registry import Registry
from services.chassis.version import VERSION
from services.local_engine.audited_model_admin import AuditedModelAdmin
from services.local_engine.engine import Engine
from services.local_engine.engine_metrics import EngineMetrics, VllmCollector, observe_load
from services.local_engine.engine_watch import EngineLost, EngineWatch
from services.local_engine.forms import FormLimits
from services.local_engine.handler import BackendIdentity, EngineHandler
from services.local_engine.images.addresses import parse_networks
from services.local_engine.images.fetcher import ImageFetcher
from services.local_engine.images.reader import ImageReader
from services.local_engine.model_admin import FULL_NAME, ModelAdmin
from services.local_engine.model_changes import ModelChanges
from services.local_engine.model_sources import ModelSources
from services.local_engine.on_vllm.engine import VllmEngine
from services.local_engine.on_vllm.options import VllmOptions, further_arguments
from services.local_engine.registry_meta import follow_roster, listed
from services.local_engine.roster import Roster
from services.local_engine.settings import Settings
from services.local_engine.simulation.engine import H100_LLAMA_8B, SimEngine, SimOptions
from services.local_engine.simulation.model import SimLimits
from services.local_engine.slow_spells import slow_spells
from services.local_engine.step_model import StepModel

__all__ = ["SERVICE", "EngineLost", "make_engine", "running"]

SERVICE = "anabranch-engine"


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
    roster = Roster()
    changes: ModelChanges | None = None
    meta = {
        "tier": "local",
        "models": listed(settings.names),
        "engine": settings.engine,
        "capacity": str(settings.max_num_seqs),
    }
    try:
        async with (
            redis_client(settings.redis_url, "ANABRANCH_ENGINE_REDIS_URL") as redis,
            Host.open(
                SERVICE, settings, meta=meta, registry=registry, key_source=key_source
            ) as host,
            _image_reader(settings) as images,
        ):
            watch = EngineWatch(host, hang_after=settings.hang_after, hang_exit=settings.hang_exit)
            watch.observe(host.meter)
            changes = ModelChanges(
                settings, roster, make=make_engine, watch=watch, tasks=host.tasks
            )
            handler = EngineHandler(
                roster,
                identity=lambda: BackendIdentity(host.instance_id, VERSION, settings.zone),
                draining=lambda: service.requests.draining,
                hung=lambda: watch.hung,
                metrics=EngineMetrics(host.meter),
                tracer=host.tracer,
                max_waiting=settings.max_waiting,
                max_message_bytes=settings.max_message_bytes,
                images=images,
                max_waiting_tokens=settings.max_waiting_tokens,
            )
            service = host.add_model_service(handler, quotas=QuotaGate(redis))
            serve_operations(host)
            host.add_servicer(
                model_admin_pb2_grpc.add_ModelAdminServiceServicer_to_server,
                AuditedModelAdmin(ModelAdmin(roster, changes), host.audit),
                FULL_NAME,
            )
            await host.start()
            await engine.start()
            await changes.begin(engine)
            observe_load(host.meter, roster.load)
            if settings.engine == "vllm":
                host.telemetry.registry.register(VllmCollector(lambda: roster.models_loaded))
            for lane in range(EngineHandler.LANES):
                host.tasks.create_task(handler.encode_requests(lane), name=f"encode-{lane}")
            host.tasks.create_task(follow_roster(roster, host), name="registry-models")
            host.set_meta({"models": listed(roster.names)})
            await host.serve()
            yield host
    finally:
        if changes is not None:
            await changes.close()
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
            max_adapters=settings.max_adapters,
            max_adapter_rank=settings.max_adapter_rank,
            sleep_mode=settings.sleep_mode,
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
            images=settings.images,
            embeds=settings.task == "embed",
            prefix_events=settings.prefix_events,
            step_model=pace,
            quantization=settings.quantization,
            tool_parser=settings.tool_parser,
            reasoning_parser=settings.reasoning_parser,
            chat_template=settings.chat_template,
            trust_remote_code=settings.trust_remote_code,
            forms=FormLimits(
                seconds=settings.grammar_timeout,
                processes=settings.grammar_processes,
                memory=settings.grammar_memory_mib * 1024 * 1024,
                compact=settings.compact_json,
                kinds=frozenset(settings.response_formats),
            ),
            tuning=settings.tuning,
            further=further_arguments(settings.vllm_args),
            max_adapters=settings.max_adapters,
            max_adapter_rank=settings.max_adapter_rank,
            sleep_mode=settings.sleep_mode,
            hub=ModelSources(settings.model_sources).hub,
        )
    )


@asynccontextmanager
async def _image_reader(settings: Settings) -> AsyncIterator[ImageReader]:
    limits = settings.image_limits()
    if not limits.places:
        yield ImageReader(limits, None)
        return
    async with ImageFetcher.open(
        networks=parse_networks(settings.image_networks),
        timeout=settings.image_timeout,
        authorities=str(settings.image_ca_file or ""),
    ) as fetcher:
        yield ImageReader(limits, fetcher)
