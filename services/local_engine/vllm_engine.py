"""The engine that answers: vLLM in process behind the `Engine` protocol.

The only file that imports vLLM, and only once it starts. Loads and configures it, for vLLM 0.25
to 0.33. Jobs, tokenizer, mapping and statistics are in the files beside this one.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.local_engine import vllm_options, vllm_sampling
from services.local_engine.chat_tokenizer import ChatTokenizer
from services.local_engine.engine import (
    Delta,
    EngineLoad,
    EngineStartError,
    Job,
    ModelFacts,
    OnDelta,
    OnFail,
    SamplingSpec,
)
from services.local_engine.load_meter import LoadMeter
from services.local_engine.orphan_guard import OrphanGuard
from services.local_engine.vllm_jobs import NewParams, VllmJobs
from services.local_engine.vllm_options import VllmOptions
from services.local_engine.vllm_outputs import Outputs, outputs_for
from services.local_engine.vllm_steps import StepRecorder

_log = logging.getLogger(__name__)

T = TypeVar("T")

_LOST_POLL_S = 0.25
_CAPABILITIES = (
    pb.CAPABILITY_GENERATE,
    pb.CAPABILITY_RESUME_TOKENS,
    pb.CAPABILITY_RESUME_TEXT,
    pb.CAPABILITY_STRUCTURED_OUTPUT,
)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What exists once vLLM is up."""

    llm: Any
    facts: ModelFacts
    tokenizer: ChatTokenizer
    jobs: VllmJobs
    kv_total_tokens: int
    prefill_budget: int


class VllmEngine:
    """Runs jobs on vLLM's AsyncLLM. One per process: vLLM's configuration is process-wide."""

    def __init__(
        self,
        options: VllmOptions,
        clock: Callable[[], float] = time.monotonic,
        outputs: Callable[[Any, str], Outputs] = outputs_for,
    ) -> None:
        self._options = options
        self._outputs = outputs
        self._clock = clock
        self._meter = LoadMeter(clock, options.step_model)
        self._recorders: list[StepRecorder] = []
        self._feeder: asyncio.Task[None] | None = None
        self._state: _Loaded | None = None
        self._guard: OrphanGuard | None = None

    @property
    def facts(self) -> ModelFacts:
        """The loaded model."""
        return self._loaded.facts

    async def start(self) -> None:
        """Loads the model, which takes from 15 s to minutes, off the event loop."""
        _set_variables(vllm_options.process_variables(self._options))
        logging.getLogger("vllm").setLevel(max(_log.getEffectiveLevel(), logging.WARNING))
        started = self._clock()
        self._guard = OrphanGuard()
        try:
            self._state = await _in_own_thread(self._load)
        except Exception as error:
            raise EngineStartError(f"vLLM cannot serve {self._options.model}: {error}") from error
        self._guard.watch(child.pid for child in multiprocessing.active_children() if child.pid)
        self._feeder = asyncio.create_task(self._state.jobs.run(), name="vllm-jobs")
        await self._warm_up()
        _log.info("model loaded", extra={"seconds": round(self._clock() - started, 1)})

    async def close(self) -> None:
        """Ends running jobs as cancelled and stops vLLM's processes, which takes some seconds."""
        state, self._state = self._state, None
        guard, self._guard = self._guard, None
        if state is not None:
            state.jobs.abort_all()
            if self._feeder is not None:
                self._feeder.cancel()
                await asyncio.wait({self._feeder})
            await asyncio.to_thread(state.llm.shutdown)
        if guard is not None:
            await asyncio.to_thread(guard.close)

    async def lost(self) -> str:
        """Waits until vLLM's engine core is dead."""
        while True:
            if self._loaded.llm.errored:
                return "vLLM's engine core has died"
            await asyncio.sleep(_LOST_POLL_S)

    async def encode(self, request: pb.GenerateRequest) -> list[int]:
        """The prompt's token ids."""
        return await self._loaded.tokenizer.encode(request)

    async def encode_text(self, text: str) -> list[int]:
        """The token ids of plain text."""
        return await self._loaded.tokenizer.encode_text(text)

    def submit(self, job: Job, on_delta: OnDelta, on_fail: OnFail) -> None:
        """Queues the job for vLLM."""
        self._loaded.jobs.submit(job, on_delta, on_fail)

    def abort(self, job_id: str) -> None:
        """Ends a job for its caller now; vLLM hears of it within a step."""
        if self._state is not None:
            self._state.jobs.abort(job_id)

    def load(self) -> EngineLoad:
        """The load as of vLLM's last step."""
        state = self._loaded
        usage = max((recorder.kv_usage for recorder in self._recorders), default=0.0)
        return self._meter.report(
            running=sum(recorder.running for recorder in self._recorders),
            kv_used_tokens=int(usage * state.kv_total_tokens),
            kv_total_tokens=state.kv_total_tokens,
            max_running=self._options.max_num_seqs,
            prefill_budget=state.prefill_budget,
        )

    @property
    def _loaded(self) -> _Loaded:
        if self._state is None:
            raise Fault(
                errors_pb2.ERROR_REASON_MODEL_LOADING, "the model is not loaded", retry_after=2.0
            )
        return self._state

    def _load(self) -> _Loaded:
        import vllm
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.executor.uniproc_executor import UniProcExecutor

        options = self._options
        is_cpu = current_platform.is_cpu()
        arguments = _engine_arguments(options, is_cpu=is_cpu)
        if is_cpu:
            _set_variables(vllm_options.cpu_variables(options))
            if options.tensor_parallel_size * options.pipeline_parallel_size == 1:
                # Without a third process, which would import everything once more: 10 s less.
                arguments["distributed_executor_backend"] = UniProcExecutor
        config = AsyncEngineArgs(**arguments).create_engine_config()
        llm = AsyncLLM.from_vllm_config(config, stat_loggers=[self._new_recorder])
        model = config.model_config
        new_params, refusals = _requests(dict(model.get_diff_sampling_param()))
        tokenizer = ChatTokenizer(llm.get_tokenizer(), int(model.get_vocab_size()))
        return _Loaded(
            llm=llm,
            facts=ModelFacts(
                name=options.name,
                source=os.path.basename(options.model.rstrip("/")),
                context_length=int(model.max_model_len),
                max_running=options.max_num_seqs,
                capabilities=_CAPABILITIES,
            ),
            tokenizer=tokenizer,
            jobs=VllmJobs(
                llm,
                tokenizer,
                self._meter,
                new_params,
                refusals,
                self._outputs(llm, vllm.__version__),
            ),
            kv_total_tokens=int(
                (config.cache_config.num_gpu_blocks or 0) * config.cache_config.block_size
            ),
            prefill_budget=int(config.scheduler_config.max_num_batched_tokens),
        )

    def _new_recorder(self, _config: Any, _engine_index: int = 0) -> StepRecorder:
        recorder = StepRecorder(self._meter, self._clock)
        self._recorders.append(recorder)
        return recorder

    async def _warm_up(self) -> None:
        """One tiny job: kernels are loaded, and a model that cannot run is found out now."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_delta(delta: Delta) -> None:
            if delta.usage is not None:
                done.set_result(None)

        prompt = await self.encode_text("warm up")
        # Log-probabilities have kernels of their own, slow only the first time.
        spec = SamplingSpec(logprobs=1)
        self.submit(Job("warm-up", prompt, spec, 2), on_delta, done.set_exception)
        try:
            await done
        except Fault as fault:
            raise EngineStartError(f"the model is loaded but cannot run: {fault}") from fault


def _set_variables(variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _engine_arguments(options: VllmOptions, *, is_cpu: bool) -> dict[str, Any]:
    eager = options.enforce_eager
    arguments: dict[str, Any] = {
        "model": options.model,
        "served_model_name": options.name,
        "dtype": "float32" if is_cpu and options.dtype == "auto" else options.dtype,
        "max_num_seqs": options.max_num_seqs,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "tensor_parallel_size": options.tensor_parallel_size,
        "pipeline_parallel_size": options.pipeline_parallel_size,
        "enforce_eager": is_cpu if eager is None else eager,
        "seed": options.seed,
        "max_logprobs": vllm_sampling.MAX_ALTERNATIVES + 1,
        "scheduling_policy": "priority",
        "enable_log_requests": False,
        "use_tqdm_on_load": False,
    }
    for name in ("max_model_len", "max_num_batched_tokens"):
        if getattr(options, name):
            arguments[name] = getattr(options, name)
    return arguments


def _requests(defaults: dict[str, Any]) -> tuple[NewParams, tuple[type[Exception], ...]]:
    """How to make vLLM's sampling parameters, and what it raises for a bad request."""
    import vllm.exceptions
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    def new_params(job: Job, detokenize: bool) -> Any:
        arguments = vllm_sampling.sampling_arguments(job, defaults, detokenize=detokenize)
        constraint = job.sampling.constraint
        if constraint is not None:
            form = vllm_sampling.constraint_arguments(constraint)
            arguments["structured_outputs"] = StructuredOutputsParams(**form)
        return SamplingParams(output_kind=RequestOutputKind.DELTA, **arguments)

    # VLLMClientError exists since vLLM 0.30; before it, refusals were plain ValueErrors.
    client_error = getattr(vllm.exceptions, "VLLMClientError", ValueError)
    return new_params, (ValueError, TypeError, NotImplementedError, client_error)


async def _in_own_thread(work: Callable[[], T]) -> T:
    """Runs `work` in a daemon thread: a process that is told to stop need not wait for it."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if result.done():
            return  # given up meanwhile
        if error is None:
            result.set_result(cast(T, value))
        else:
            result.set_exception(error)

    def run() -> None:
        value: T | None = None
        failure: BaseException | None = None
        try:
            value = work()
        except BaseException as error:  # noqa: BLE001 - raised again by the waiting coroutine
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, failure)

    threading.Thread(target=run, name="model-load", daemon=True).start()
    return await result
