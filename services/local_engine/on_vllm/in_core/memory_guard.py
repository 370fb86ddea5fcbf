"""Out of memory in a step fails one request; vLLM's engine core and the other requests go on.

vLLM itself lets such an error end the core, and every stream with it. Two of its parts that may
be replaced are: the executor marks a step that ran out of memory instead of raising, and the
scheduler, when it gets the marked step back, ends the request that most likely caused it and has
all others computed again from their tokens. Until then nothing new is computed, so that no step
builds on the failed one. For a single device: others would wait in a collective operation for the
one that failed. Relies on more of vLLM than it documents, for the versions in KNOWN_FROM and
KNOWN_BELOW; with others, and with what is listed in `install`, the guard is off.
"""

from __future__ import annotations

import gc
import inspect
import re
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

import torch
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT
from vllm.v1.request import RequestStatus

from services.local_engine.on_vllm.core_failures import OUT_OF_MEMORY

KNOWN_FROM, KNOWN_BELOW = (0, 25), (0, 34)
"""Versions of vLLM whose scheduler and executor are known."""

IN_A_ROW = 3
"""So many steps in a row that run out of memory are the end: it is no request's fault."""

_FAILED = "anabranch_out_of_memory"
"""The attribute of a step, a SchedulerOutput, that ran out of memory; holds the error's text."""
_HELD = "anabranch_held"
"""The attribute of a step in which nothing is computed because another has failed."""


_CALLS: tuple[tuple[type, str, tuple[str, ...]], ...] = (
    (Scheduler, "reset_prefix_cache", ("reset_running_requests",)),
    (Scheduler, "reset_encoder_cache", ()),
    (Scheduler, "finish_requests", ("request_ids", "finished_status")),
    (Scheduler, "update_from_output", ("scheduler_output", "model_runner_output")),
    (SchedulerOutput, "make_empty", ()),
    (UniProcExecutor, "execute_model", ("scheduler_output", "non_block")),
    (UniProcExecutor, "sample_tokens", ("grammar_output", "non_block")),
)
"""What is called or stood in for, and with which parameters."""


def install(config: Any, version: str) -> str:
    """Has a VllmConfig load the guard; returns why it cannot, or an empty text."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if not found or not KNOWN_FROM <= (int(found[1]), int(found[2])) < KNOWN_BELOW:
        return f"vLLM {version} is unknown"
    parallel, scheduling = config.parallel_config, config.scheduler_config
    if parallel.distributed_executor_backend not in ("uni", UniProcExecutor):
        return "the model is spread over several processes"
    if getattr(parallel, "data_parallel_size", 1) > 1:
        return "several cores keep step with each other"
    if scheduling.scheduler_cls is not None:
        return "another scheduler is asked for"
    for what in ("speculative_config", "kv_transfer_config", "ec_transfer_config"):
        if getattr(config, what, None) is not None:
            return f"{what} keeps a state of its own"
    for owner, method, names in _CALLS:
        called = getattr(owner, method, None)
        if called is None or not set(names) <= set(inspect.signature(called).parameters):
            return f"vLLM's {owner.__name__}.{method} is not as it was seen"
    parallel.distributed_executor_backend = GuardedExecutor
    scheduling.scheduler_cls = (
        GuardedAsyncScheduler if scheduling.async_scheduling else GuardedScheduler
    )
    return ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's allocator, or the CPU's, has found no memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate" in str(error)
    )


class GuardedExecutor(UniProcExecutor):  # type: ignore[misc]
    """Marks a step that ran out of memory, and answers for it with no output."""

    _step: Any = None

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        """The step's first half."""
        self._step = scheduler_output
        if hasattr(scheduler_output, _HELD):
            return _no_output(non_block)
        try:
            return super().execute_model(scheduler_output, non_block=non_block)
        except RuntimeError as error:
            self._survive(error)
            return _no_output(non_block)

    def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:
        """The step's second half."""
        if not hasattr(self._step, _FAILED):
            try:
                sampled = super().sample_tokens(grammar_output, non_block=non_block)
                if not (non_block and sampled.done()):
                    return sampled
                sampled.result()
            except RuntimeError as error:
                self._survive(error)
            else:
                return sampled
        return _no_output(non_block)

    def _survive(self, error: RuntimeError) -> None:
        """Marks the step, and leaves the runner as between two steps. Raises what is no lack of
        memory, or came before the runner knew the step's requests."""
        step, runner = self._step, self.driver_worker.worker.model_runner
        new = [request.req_id for request in step.scheduled_new_reqs]
        if not is_out_of_memory(error) or not step.total_num_scheduled_tokens:
            raise error
        if not all(_knows(runner, request_id) for request_id in new):
            raise error
        setattr(step, _FAILED, str(error).partition("\n")[0][:200])
        # They hold the step's tensors.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        runner.execute_model_state = None
        batch: Any = getattr(runner, "input_batch", None)
        if hasattr(batch, "prev_sampled_token_ids"):
            batch.prev_sampled_token_ids = batch.prev_req_id_to_index = None
        # Its encoder outputs were promised, and never computed.
        runner.reset_encoder_cache()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Guard:
    """What the two schedulers do about a failed step."""

    running: list[Any]
    requests: dict[str, Any]
    _last: Any = None
    _in_a_row = 0

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """The next step; an empty one as long as a failed one has not come back."""
        if hasattr(self._last, _FAILED):
            held = SchedulerOutput.make_empty()
            setattr(held, _HELD, True)
            return held
        self._last = super().schedule(*args, **kwargs)  # type: ignore[misc]
        return self._last

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Takes a step back."""
        if hasattr(scheduler_output, _HELD):
            return {}
        if hasattr(scheduler_output, _FAILED):
            return self._recover(scheduler_output)
        self._in_a_row = 0
        return super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )

    def _recover(self, step: Any) -> dict[int, EngineCoreOutputs]:
        self._in_a_row += 1
        cause = getattr(step, _FAILED)
        if self._in_a_row >= IN_A_ROW:
            raise MemoryError(f"{IN_A_ROW} steps in a row ran out of memory: {cause}")
        culprit = self._culprit(step)
        if culprit is not None:
            self.finish_requests(culprit.request_id, RequestStatus.FINISHED_ERROR)  # type: ignore[attr-defined]
        again = list(self.running)
        self.reset_prefix_cache(reset_running_requests=True)  # type: ignore[attr-defined]
        self.reset_encoder_cache()  # type: ignore[attr-defined]
        for request in again:
            _nothing_in_flight(request)
        self._last = None
        # Nothing is in it but what the scheduler tells of itself.
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(  # type: ignore[misc]
            SchedulerOutput.make_empty(), EMPTY_MODEL_RUNNER_OUTPUT
        )
        if culprit is not None:
            part = f"{step.num_scheduled_tokens[culprit.request_id]} tokens of the step's"
            failed = EngineCoreOutput(
                request_id=culprit.request_id,
                new_token_ids=[],
                finish_reason=FinishReason.ERROR,
                stop_reason=f"{OUT_OF_MEMORY}{part} {step.total_num_scheduled_tokens}: {cause}",
            )
            mine = outputs.setdefault(culprit.client_index, EngineCoreOutputs())
            mine.outputs = [*mine.outputs, failed]
        return outputs

    def _culprit(self, step: Any) -> Any:
        """The request with the most newly read tokens, or else with the longest context; None when
        all have been aborted meanwhile."""
        tokens = step.num_scheduled_tokens
        here = [self.requests[name] for name in tokens if name in self.requests]
        return max(
            here,
            key=lambda request: (tokens[request.request_id], request.num_tokens),
            default=None,
        )


class GuardedScheduler(_Guard, Scheduler):  # type: ignore[misc]
    """vLLM's scheduler, guarded."""


class GuardedAsyncScheduler(_Guard, AsyncScheduler):  # type: ignore[misc]
    """vLLM's scheduler that plans a step ahead, guarded."""


def _no_output(non_block: bool) -> Any:
    if not non_block:
        return EMPTY_MODEL_RUNNER_OUTPUT
    done: Future[Any] = Future()
    done.set_result(EMPTY_MODEL_RUNNER_OUTPUT)
    return done


def _knows(runner: Any, request_id: str) -> bool:
    """Whether a model runner has taken in a new request; both of vLLM's are known."""
    states = getattr(runner, "req_states", None)
    known: Iterable[str] = runner.requests if states is None else states.req_id_to_index
    return request_id in known


def _nothing_in_flight(request: Any) -> None:
    """The failed step was the last on its way: what a scheduler counts as such is not coming."""
    for name in (
        *("num_output_placeholders", "async_tokens_to_discard"),
        *("num_stale_output_tokens", "num_in_flight_tokens"),
    ):
        if hasattr(request, name):
            setattr(request, name, 0)
    if hasattr(request, "drop_stale_output"):
        request.drop_stale_output = False
