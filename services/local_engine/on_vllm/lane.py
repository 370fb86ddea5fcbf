"""A short way for outputs that are nothing but tokens: past vLLM's RequestOutputs. ADR 14.

All that is known here of vLLM's inner workings is documented nowhere, so each part of it is looked
for first: where one is missing, `lane_of` returns None, and outputs come as TappedOutputs has them.
"""

from __future__ import annotations

import functools
import inspect
import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Self

from services.local_engine.on_vllm.outputs import Plain, Prompt, Receive, TappedOutputs

_log = logging.getLogger(__name__)

_UNUSUAL = ("finish_reason", "events", "prefill_stats", "kv_transfer_params", "new_logprobs")
"""Of an engine core's output: where one of them is there, vLLM deals with it."""

_USUAL = frozenset(
    (
        *("request_id", "new_token_ids", "stop_reason", "trace_headers", "num_nans_in_logits"),
        *("new_prompt_logprobs_tensors", "prompt_token_id_logprobs", "pooling_output"),
        *("ec_transfer_params", "mm_cache_miss_hashes", "new_sampling_mask"),
        *("routed_experts", "spec_decode_metrics"),
    )
)
"""What else it has in the versions that were read: asked for by none of our requests, or said only
beside something unusual. A field that is in neither list is dealt with by vLLM where it is set."""


def _marks(kind: Any) -> dict[str, Any]:
    """The fields of vLLM's outputs, a struct, that are looked at, each with its usual value."""
    plain = kind("", [])
    unknown = [name for name in kind.__struct_fields__ if name not in {*_USUAL, *_UNUSUAL}]
    return {name: getattr(plain, name) for name in (*_UNUSUAL, *unknown)}


_CALLS: dict[str, tuple[str, ...]] = {
    "update": ("new_token_ids", "stop_terminated"),
    "get_next_output_text": ("finished", "delta"),
}
"""What vLLM's detokenizers are called with."""


class _Request:
    """One request in the lane: vLLM's own state of it, and where its tokens go."""

    __slots__ = ("detokenizer", "plain", "state", "stats")

    def __init__(self, state: Any, plain: Plain) -> None:
        self.state = state
        self.plain = plain
        self.stats = state.stats
        detokenizer = state.detokenizer
        # vLLM's detokenizer of requests that want no text only keeps their tokens.
        self.detokenizer = detokenizer if hasattr(detokenizer, "output_text") else None


class LaneOutputs:
    """As TappedOutputs, but a request's outputs between the first and the last go by the lane.

    It stands before `OutputProcessor.process_outputs` from `__aenter__` to `__aexit__`, keeps
    vLLM's statistics of what it takes, and leaves everything else to vLLM.
    """

    refuses_late = False

    def __init__(
        self, llm: Any, gaps: Callable[[float, int], None] | None, marks: Mapping[str, Any]
    ) -> None:
        self._marks = attrgetter(*marks)
        self._plain = tuple(marks.values())
        self._llm = llm
        self._tapped = TappedOutputs(llm)
        self._processor = llm.output_processor
        self._vllms_own = self._processor.process_outputs
        self._gaps = gaps
        self._requests: dict[str, _Request] = {}
        self._inner_ids: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        self._processor.process_outputs = self.process_outputs
        return self

    async def __aexit__(self, *_: object) -> None:
        del self._processor.process_outputs

    async def begin(
        self,
        request_id: str,
        tokens: Prompt,
        params: Any,
        priority: int,
        receive: Receive,
        further: Mapping[str, Any],
        plain: Plain | None = None,
    ) -> None:
        """Raises what vLLM refuses the request with."""
        if plain is None:
            await self._tapped.begin(request_id, tokens, params, priority, receive, further)
            return
        take = functools.partial(self._receive, request_id, receive)
        collector = await self._tapped.add(request_id, tokens, params, priority, take, further)
        state = self._processor.request_states.get(collector.request_id)
        if state is not None:
            self._requests[collector.request_id] = _Request(state, plain)
            self._inner_ids[request_id] = collector.request_id

    def forget(self, request_id: str) -> None:
        """Nothing of it comes any more."""
        self._requests.pop(self._inner_ids.pop(request_id, ""), None)

    def _receive(self, request_id: str, receive: Receive, output: Any) -> None:
        """What vLLM has dealt with: a first output, or the end."""
        if getattr(output, "finished", True):
            self.forget(request_id)
        receive(output)

    def process_outputs(
        self,
        engine_core_outputs: Sequence[Any],
        engine_core_timestamp: float | None = None,
        iteration_stats: Any = None,
        **more: Any,
    ) -> Any:
        """As vLLM's own: one step's outputs, at most one a request."""
        requests, marks, plain = self._requests, self._marks, self._plain
        others = []
        count = gaps = 0
        before: float | None = None  # when most of them had their token before
        for output in engine_core_outputs:
            request = requests.get(output.request_id)
            if request is None or request.state.is_prefilling or marks(output) != plain:
                others.append(output)
                continue
            token_ids = output.new_token_ids
            if iteration_stats is not None:
                stats = request.stats
                stats.num_generation_tokens += len(token_ids)
                count += len(token_ids)
                last = stats.last_token_ts
                if last != before:
                    if before is not None:
                        self._count_gaps(iteration_stats, engine_core_timestamp, before, gaps)
                    before, gaps = last, 0
                gaps += 1
                stats.last_token_ts = engine_core_timestamp
            if request.detokenizer is None:
                request.plain(token_ids, "")
            else:
                request.detokenizer.update(token_ids, False)
                request.plain(token_ids, request.detokenizer.get_next_output_text(False, True))
        if before is not None:
            iteration_stats.num_generation_tokens += count
            self._count_gaps(iteration_stats, engine_core_timestamp, before, gaps)
        return self._vllms_own(others, engine_core_timestamp, iteration_stats, **more)

    def _count_gaps(self, stats: Any, now: float | None, before: float, count: int) -> None:
        gap = (now or 0.0) - before
        if self._gaps is None:
            stats.inter_token_latencies_iter.extend([gap] * count)
        else:
            self._gaps(gap, count)


def lane_of(llm: Any) -> LaneOutputs | None:
    """The lane of an AsyncLLM in which all that it relies on is found; None otherwise."""
    try:
        missing = _missing(llm)
    except (ImportError, AttributeError, TypeError) as error:
        missing = str(error)
    if missing:
        _log.warning(
            "this version of vLLM is not as the short way of its outputs needs it: each token "
            "costs some 20 µs more",
            extra={"missing": missing},
        )
        return None
    if llm.output_processor.stream_interval != 1:
        return None
    from vllm.v1.engine import EngineCoreOutput

    return LaneOutputs(llm, gap_counter(llm), _marks(EngineCoreOutput))


def _missing(llm: Any) -> str:
    """What of vLLM is not as it is relied on; empty where all is."""
    processor = getattr(llm, "output_processor", None)
    if processor is None:
        return "output_processor"
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer, IncrementalDetokenizer
    from vllm.v1.engine.output_processor import (
        OutputProcessor,
        RequestOutputCollector,
        RequestState,
    )
    from vllm.v1.metrics.stats import IterationStats, RequestStateStats

    if not isinstance(processor, OutputProcessor):
        return "output_processor"
    parameters = tuple(inspect.signature(OutputProcessor.process_outputs).parameters)
    if parameters[1:4] != ("engine_core_outputs", "engine_core_timestamp", "iteration_stats"):
        return "process_outputs"
    for owner in (BaseIncrementalDetokenizer, IncrementalDetokenizer):
        for method, taken in _CALLS.items():
            if tuple(inspect.signature(getattr(owner, method)).parameters)[1:] != taken:
                return f"{owner.__name__}.{method}"
    relied: tuple[tuple[Any, tuple[str, ...]], ...] = (
        (EngineCoreOutput("", []), ("request_id", "new_token_ids", *_UNUSUAL)),
        (RequestStateStats(), ("num_generation_tokens", "last_token_ts")),
        (IterationStats(), ("num_generation_tokens", "inter_token_latencies_iter")),
        (processor, ("request_states", "stream_interval")),
        (RequestOutputCollector, ("put", "get_nowait")),
    )
    for thing, names in relied:
        for name in names:
            if not hasattr(thing, name):
                return f"{type(thing).__name__}.{name}"
    # What is only there once there is a request.
    for kind, names in (
        (RequestState, ("detokenizer", "is_prefilling", "stats")),
        (RequestOutputCollector, ("request_id",)),
    ):
        for name in names:
            if name not in kind.__init__.__code__.co_names:
                return f"{kind.__name__}.{name}"
    return ""


def gap_counter(llm: Any) -> Callable[[float, int], None] | None:
    """Counts equal times between tokens in vLLM's own histogram of them, all in one go.

    vLLM counts each by itself, 1 µs a token. None where the histogram is not as it was seen.
    """
    loggers = getattr(getattr(llm, "logger_manager", None), "stat_loggers", ())
    found = [
        logger.histogram_inter_token_latency
        for logger in loggers
        if hasattr(logger, "histogram_inter_token_latency")
    ]
    if len(found) != 1 or not isinstance(found[0], dict) or len(found[0]) != 1:
        return None
    (histogram,) = found[0].values()
    try:
        total, buckets, bounds = histogram._sum, histogram._buckets, histogram._upper_bounds
        total.inc(0)
        buckets[-1].inc(0)
    except (AttributeError, TypeError, IndexError):
        return None
    if list(bounds) != sorted(bounds) or bounds[-1] != float("inf"):
        return None

    def count(gap: float, times: int) -> None:
        total.inc(gap * times)
        buckets[bisect_left(bounds, gap)].inc(times)

    return count
