"""vLLM's engine core around a worker that computes nothing: real scheduler, real steps, our guard.

The worker keeps what a model runner keeps of each request, from what each step tells it, and
"computes" a token that depends on all before it: what a step leaves out or tells twice shows.
"""

from __future__ import annotations

import queue
import random
from collections import deque
from types import SimpleNamespace
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine.core import EngineCore
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import (
    EMPTY_MODEL_RUNNER_OUTPUT,
    AsyncModelRunnerOutput,
    ModelRunnerOutput,
)
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from services.local_engine.on_vllm.in_core.memory_guard import GuardedExecutor

BLOCK = 16
CLIENT = 3


def next_token(tokens: list[int]) -> int:
    return (sum(token * (n % 97 + 1) for n, token in enumerate(tokens)) + len(tokens)) % 5003


class _Later(AsyncModelRunnerOutput):  # type: ignore[misc]
    def __init__(self, output: ModelRunnerOutput) -> None:
        self._output = output

    def get_output(self) -> ModelRunnerOutput:
        return self._output


class Runner:
    """Both halves of a step. Fails in one of them when `shortage` says so."""

    def __init__(self, shortage: Any, *, later: bool) -> None:
        self.requests: dict[str, list[int]] = {}
        self.execute_model_state: Any = None
        self._shortage = shortage
        self._later = later
        self._short = ""

    def reset_encoder_cache(self) -> None:
        return

    def execute_model(self, step: SchedulerOutput) -> Any:
        assert self.execute_model_state is None
        for name in {*step.finished_req_ids, *(step.preempted_req_ids or ())}:
            # The first runner keeps what it knows of a preempted request.
            if name in step.finished_req_ids or self.forgets_preempted:
                self.requests.pop(name, None)
        computed: dict[str, int] = {}
        for new in step.scheduled_new_reqs:
            known = getattr(new, "prefill_token_ids", None) or new.prompt_token_ids
            self.requests[new.req_id] = list(known)
            computed[new.req_id] = new.num_computed_tokens
        cached = step.scheduled_cached_reqs
        for name, start in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if name in cached.resumed_req_ids:
                self.requests[name] = list(cached.all_token_ids[name])
            computed[name] = start
        sampled: list[str] = []
        for name, count in step.num_scheduled_tokens.items():
            end = computed[name] + count
            assert computed[name] < end <= len(self.requests[name]), name
            sampled += [name] if end == len(self.requests[name]) else []
        if not step.num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        self._short = self._shortage(step)
        if self._short == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        self.execute_model_state = (step, sampled)
        return None

    forgets_preempted = False

    def sample_tokens(self, grammar: Any) -> Any:
        if self.execute_model_state is None:
            return None
        (step, sampled), self.execute_model_state = self.execute_model_state, None
        if self._short == "sampling":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        names = list(step.num_scheduled_tokens)
        tokens = []
        for name in names:
            tokens.append([next_token(self.requests[name])] if name in sampled else [])
            self.requests[name] += tokens[-1]
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: n for n, name in enumerate(names)},
            sampled_token_ids=tokens,
        )
        return _Later(output) if self._later else output


def core_of(config: VllmConfig, shortage: Any, *, second_runner: bool, blocks: int) -> Any:
    """An EngineCore, and its Runner, with the guard; nothing is loaded."""
    is_async = bool(config.scheduler_config.async_scheduling)
    config.cache_config.block_size = BLOCK
    config.cache_config.num_gpu_blocks = blocks
    attention = FullAttentionSpec(
        block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    kv_cache = KVCacheConfig(
        num_blocks=blocks,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(["layer"], attention)],
    )
    core: Any = EngineCore.__new__(EngineCore)
    core.vllm_config = config
    core.scheduler = config.scheduler_config.get_scheduler_cls()(
        vllm_config=config,
        kv_cache_config=kv_cache,
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
        log_stats=True,
    )
    core.scheduler.use_v2_model_runner = second_runner
    runner = Runner(shortage, later=is_async)
    runner.forgets_preempted = second_runner
    executor = GuardedExecutor.__new__(GuardedExecutor)
    executor.driver_worker = SimpleNamespace(
        worker=SimpleNamespace(model_runner=runner),
        execute_model=runner.execute_model,
        sample_tokens=runner.sample_tokens,
    )
    core.model_executor = executor
    core.batch_queue_size = 2 if is_async else 1
    core.batch_queue = deque(maxlen=2) if is_async else None
    core.step_fn = core.step_with_batch_queue if is_async else core.step
    core.aborts_queue = queue.Queue()
    core.async_scheduling, core.log_stats = is_async, True
    core.is_ec_consumer, core.is_pooling_model, core.is_mm_encoder_only = True, False, False
    core.use_spec_decode = core.check_for_draft_tokens = False
    core._weight_version = None
    core._iteration_index = 0
    init_none_hash(sha256)
    return core, runner


def request(name: str, chance: random.Random, max_tokens: int) -> Request:
    """With a prompt that some others begin with too."""
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    params.update_from_generation_config({}, None)
    shared = [7] * chance.choice((0, 48))
    return Request(
        request_id=name,
        prompt_token_ids=shared + [chance.randrange(5003) for _ in range(chance.randrange(1, 90))],
        sampling_params=params,
        pooling_params=None,
        client_index=CLIENT,
        block_hasher=get_request_block_hasher(BLOCK, sha256),
    )
