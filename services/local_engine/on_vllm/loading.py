"""Configures and starts vLLM, 0.25 to 0.33, and gathers what the engine needs of it.

vLLM is imported when `load` is called, not before. What runs on it is engine.py's.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from anabranch.v1 import generation_pb2 as pb
from services.chassis.prefix_log import PrefixLog
from services.local_engine.engine import ModelFacts
from services.local_engine.load_meter import LoadMeter
from services.local_engine.on_vllm import request_params, seeding
from services.local_engine.on_vllm.adapters import VllmAdapters
from services.local_engine.on_vllm.answer_parsers import (
    AnswerParsers,
    answer_parsers,
    chat_format,
)
from services.local_engine.on_vllm.arguments import engine_arguments
from services.local_engine.on_vllm.chat_format import read_template
from services.local_engine.on_vllm.chat_tokenizer import ChatTokenizer
from services.local_engine.on_vllm.checks import check_options
from services.local_engine.on_vllm.embedder import VllmEmbedder, embedder_for
from services.local_engine.on_vllm.form_guard import FormGuard
from services.local_engine.on_vllm.installed import installed
from services.local_engine.on_vllm.jobs import VllmJobs
from services.local_engine.on_vllm.options import VllmOptions, cpu_variables
from services.local_engine.on_vllm.outputs import Outputs
from services.local_engine.on_vllm.parser_names import ParserNames
from services.local_engine.on_vllm.parsers import check_names
from services.local_engine.on_vllm.pictures import PictureRenderer, renderer_of
from services.local_engine.on_vllm.request_params import RequestParams
from services.local_engine.on_vllm.settled import settle_end
from services.local_engine.on_vllm.sleep import VllmSleep
from services.local_engine.on_vllm.steps import StepRecorder
from services.local_engine.on_vllm.structured import serialised_tokenizer, structured_arguments
from services.local_engine.on_vllm.token_lengths import longest_token
from services.local_engine.prefix_events import PrefixNames

_log = logging.getLogger(__name__)

_CAPABILITIES = (
    pb.CAPABILITY_GENERATE,
    pb.CAPABILITY_RESUME_TOKENS,
    pb.CAPABILITY_RESUME_TEXT,
    pb.CAPABILITY_STRUCTURED_OUTPUT,
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What exists once vLLM is up."""

    llm: Any
    facts: ModelFacts
    tokenizer: ChatTokenizer
    jobs: VllmJobs
    embedder: VllmEmbedder | None
    pictures: PictureRenderer | None
    kv_total_tokens: int
    prefill_budget: int
    prefixes: PrefixNames | None
    adapters: VllmAdapters | None
    sleep: VllmSleep
    answers: AnswerParsers
    forms: FormGuard | None


@dataclass(frozen=True, slots=True)
class Seams:
    """What of the engine's own takes part in a model's running.

    `outputs` chooses how outputs come, for an AsyncLLM and its version; `new_recorder` is a stat
    logger's factory; `begun` is told when a job comes after there was none.
    """

    meter: LoadMeter
    outputs: Callable[[Any, str], Outputs]
    new_recorder: Callable[..., StepRecorder]
    begun: Callable[[], None]


def guard_memory(config: Any, version: str) -> str:
    """Has a VllmConfig load in_core/memory_guard.py; returns why it cannot, or an empty text."""
    try:
        from services.local_engine.on_vllm.in_core import memory_guard
    except ImportError as missing:
        return f"vLLM {version} lacks what the guard is made of: {missing}"
    return memory_guard.install(config, version)


def load(options: VllmOptions, seams: Seams, *, events: str) -> Loaded:
    """Configures and starts vLLM, which takes from 15 s to minutes. Blocks.

    `events` is where its cache's events are to be published; empty: nowhere. Raises what vLLM
    raises for a model or a configuration that it cannot run, and ValueError.
    """
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.executor.uniproc_executor import UniProcExecutor
    from vllm.v1.metrics.stats import SchedulerStats

    here = installed()
    check_options(options, here)
    is_cpu = here.is_cpu
    names = ParserNames(options.tool_parser, options.reasoning_parser)
    check_names(names)
    template = read_template(options.chat_template) if options.chat_template else ""
    arguments = engine_arguments(options, is_cpu=is_cpu)
    if options.sleep_mode and _can_sleep(current_platform):
        arguments["enable_sleep_mode"] = True
    if is_cpu:
        set_variables(cpu_variables(options))
        if options.devices == 1:
            # Without a third process, which would import everything once more: 10 s less.
            arguments.setdefault("distributed_executor_backend", UniProcExecutor)
    if "iteration_details" in _field_names(SchedulerStats):
        # What each step computed comes with its statistics; older ones only log it.
        arguments["enable_logging_iteration_details"] = True
    if events:
        arguments |= _event_arguments(events, _field_names(AsyncEngineArgs))
    arguments |= structured_arguments(compact=options.forms.compact)
    # Its defaults for a server: steps of the size that its own server takes on such a device.
    config = AsyncEngineArgs(**arguments).create_engine_config(UsageContext.OPENAI_API_SERVER)
    draws = seeding.choose(config)
    unguarded = guard_memory(config, vllm.__version__)
    if unguarded:
        _log.warning("a step that runs out of memory ends the engine", extra={"cause": unguarded})
    if is_cpu:
        _size_cpu_cache(config.cache_config, options.kv_cache_gib)
    llm = AsyncLLM.from_vllm_config(config, stat_loggers=[seams.new_recorder])
    model, cache = config.model_config, config.cache_config
    prefixes = None
    if "kv_events_config" in arguments and cache.enable_prefix_caching:
        prefixes = PrefixNames(PrefixLog(), int(cache.block_size))
    elif events:
        _log.info("this vLLM does not tell what its prefix cache holds: routers assume it")
    adapters = VllmAdapters(llm, options) if options.max_adapters else None
    refusals = request_params.refusals()
    settle_end(llm)
    raw = llm.get_tokenizer()
    chat = chat_format(names, raw, template)
    pictures = renderer_of(llm, model, raw, refusals, chat)
    if pictures is not None:
        # vLLM renders with its own in other threads, which a tokenizer does not survive.
        raw = copy.deepcopy(raw)
    tokenizer = ChatTokenizer(raw, int(model.get_vocab_size()), chat)
    answers = answer_parsers(names, tokenizer, raw, model)
    embedder = None
    if options.embeds:
        embedder = embedder_for(llm, model, tokenizer, seams.meter, refusals, seams.begun)
    grammars = serialised_tokenizer(raw, tokenizer.vocabulary)
    return Loaded(
        llm=llm,
        facts=ModelFacts(
            name=options.name,
            source=os.path.basename(options.model.rstrip("/")),
            context_length=int(model.max_model_len),
            max_running=options.max_num_seqs * options.tuning.data_parallel_size,
            capabilities=_capabilities(options, pictures, answers),
            vector_size=int(model.embedding_size) if options.embeds else 0,
            most_images=0 if pictures is None else pictures.most_images,
            token_bytes=longest_token(raw),
        ),
        tokenizer=tokenizer,
        jobs=VllmJobs(
            llm,
            tokenizer,
            seams.meter,
            RequestParams(dict(model.get_diff_sampling_param()), draws),
            refusals,
            seams.outputs(llm, vllm.__version__),
            seams.begun,
            prefixes,
            None if adapters is None else adapters.request_of,
        ),
        embedder=embedder,
        pictures=pictures,
        kv_total_tokens=int((cache.num_gpu_blocks or 0) * cache.block_size)
        * options.tuning.data_parallel_size,
        prefill_budget=int(config.scheduler_config.max_num_batched_tokens),
        prefixes=prefixes,
        adapters=adapters,
        sleep=VllmSleep(
            llm,
            enabled=bool(getattr(model, "enable_sleep_mode", False)),
            available=_can_sleep(current_platform),
            adapters=adapters,
        ),
        answers=answers,
        forms=FormGuard(grammars, options.forms) if grammars else None,
    )


def _capabilities(
    options: VllmOptions, pictures: PictureRenderer | None, answers: AnswerParsers
) -> tuple[pb.Capability, ...]:
    if options.embeds:
        return (pb.CAPABILITY_EMBED,)
    images = () if pictures is None else (pb.CAPABILITY_IMAGES,)
    return (*_CAPABILITIES, *answers.capabilities, *images)


_ours: set[str] = set()
"""Variables that hold what an engine here wanted: a later one may want another value of them."""


def set_variables(variables: Mapping[str, str]) -> None:
    """Writes what vLLM reads from the environment; never over what an operator has set."""
    for name, value in variables.items():
        if os.environ.setdefault(name, value) == value:
            _ours.add(name)


def _size_cpu_cache(cache: Any, gib: int) -> None:
    """As wanted, whatever the environment says of an earlier engine; an operator's word stays."""
    if "VLLM_CPU_KVCACHE_SPACE" in _ours:
        for name in ("kv_cache_memory_bytes", "cpu_kvcache_space_bytes"):
            if getattr(cache, name, None):
                setattr(cache, name, gib << 30)


def _can_sleep(platform: Any) -> bool:
    """Newer ones are asked; of older ones those with CUDA's memory pools can."""
    ask = getattr(platform, "is_sleep_mode_available", None)
    return bool(ask() if ask is not None else platform.is_cuda())


def _event_arguments(endpoint: str, known: frozenset[str]) -> dict[str, Any]:
    """What has vLLM publish its cache's events; nothing from one that cannot."""
    if "kv_events_config" not in known:
        return {}
    try:
        from vllm.config import KVEventsConfig

        config = KVEventsConfig(
            enable_kv_cache_events=True,
            publisher="zmq",
            endpoint=endpoint,
            # Kept for who asks again, which nobody here does: half a GiB where prompts are long.
            buffer_steps=1,
        )
    except (ImportError, TypeError, ValueError):
        return {}
    return {"kv_events_config": config}


def _field_names(kind: Any) -> frozenset[str]:
    return frozenset(field.name for field in fields(kind))
