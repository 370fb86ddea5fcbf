"""What the lane counts for vLLM is what vLLM would have counted."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from services.local_engine.on_vllm.lane import LaneOutputs, _marks, _missing, gap_counter, lane_of

msgspec = pytest.importorskip("msgspec")

_BOUNDS = (0.01, 0.025, 0.05, 1.0)
gaps = st.one_of(st.floats(0, 3), st.sampled_from([0.0, *_BOUNDS]))


def histogram() -> Histogram:
    made = Histogram("gap", "", ["engine"], buckets=_BOUNDS, registry=CollectorRegistry())
    child: Histogram = made.labels(engine="0")
    return child


def llm_with(*histograms: Any) -> Any:
    """As far as it is looked at: its loggers, one of which has the histogram of each engine."""
    loggers = [
        SimpleNamespace(),
        SimpleNamespace(histogram_inter_token_latency=dict(enumerate(histograms))),
    ]
    return SimpleNamespace(logger_manager=SimpleNamespace(stat_loggers=loggers))


def read(found: Histogram) -> tuple[list[float], float]:
    return [bucket.get() for bucket in found._buckets], found._sum.get()


@given(st.lists(st.tuples(gaps, st.integers(1, 600)), max_size=6))
def test_equal_gaps_counted_at_once_are_as_if_each_had_been(counted):
    together, each = histogram(), histogram()
    count = gap_counter(llm_with(together))
    assert count is not None
    for gap, times in counted:
        count(gap, times)
        for _ in range(times):
            each.observe(gap)
    assert read(together)[0] == read(each)[0]
    assert read(together)[1] == pytest.approx(read(each)[1])


@pytest.mark.parametrize(
    "llm",
    [
        SimpleNamespace(),
        SimpleNamespace(logger_manager=None),
        llm_with(),
        llm_with(SimpleNamespace(observe=print)),
        llm_with(histogram(), histogram()),  # which engine's it is, outputs do not say
    ],
)
def test_a_histogram_unlike_those_known_is_left_to_vllm(llm):
    assert gap_counter(llm) is None


def outputs_of(**more: Any) -> type:
    """vLLM's outputs of a version with these fields besides, each with its usual value."""
    names = ("new_logprobs", "finish_reason", "events", "kv_transfer_params", "prefill_stats")
    fields = dict.fromkeys((*names, "trace_headers", "stop_reason")) | more
    made: type = msgspec.defstruct(
        "Output",
        [("request_id", str), ("new_token_ids", list)]
        + [(name, Any, usual) for name, usual in fields.items()],
    )
    return made


def lane_for(kind: type) -> tuple[LaneOutputs, list[Any], list[Any]]:
    """A lane with one request, what it hands on itself, and what it leaves to vLLM."""
    left: list[Any] = []
    handed: list[Any] = []
    processor = SimpleNamespace(process_outputs=lambda found, *_: left.extend(found))
    lane = LaneOutputs(SimpleNamespace(output_processor=processor), None, _marks(kind))
    lane._requests["a"] = SimpleNamespace(  # type: ignore[assignment]
        state=SimpleNamespace(is_prefilling=False),
        plain=lambda tokens, _: handed.append(tokens),
        detokenizer=None,
    )
    return lane, handed, left


def test_what_no_known_version_says_of_a_token_is_left_to_vllm():
    made = outputs_of(refused=None, generation=0)
    lane, handed, left = lane_for(made)
    lane.process_outputs([made("a", [1]), made("a", [2], trace_headers={})])
    unknown = [made("a", [3], refused="why"), made("a", [4], generation=1)]
    unusual = [made("a", [5], events=[]), made("a", [6], finish_reason=1), made("b", [7])]
    lane.process_outputs([*unknown, *unusual, made("a", [8])])
    assert handed == [[1], [2], [8]]
    assert left == [*unknown, *unusual]


@pytest.fixture
def real() -> SimpleNamespace:
    """As much of an AsyncLLM as is looked at."""
    from vllm.v1.engine.output_processor import OutputProcessor

    return SimpleNamespace(output_processor=OutputProcessor(None, log_stats=True))


@pytest.mark.vllm
def test_the_installed_vllm_is_as_the_lane_needs_it_field_by_field(real):
    from vllm.v1.engine import EngineCoreOutput

    assert _missing(real) == ""
    assert list(_marks(EngineCoreOutput)) == list(_marks(outputs_of()))


@pytest.mark.vllm
@pytest.mark.parametrize(
    "differs", [lambda self, tokens: None, lambda self, new_token_ids, stop, more: None]
)
def test_a_detokenizer_that_is_called_otherwise_is_noticed(real, differs, monkeypatch):
    from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer

    monkeypatch.setattr(BaseIncrementalDetokenizer, "update", differs)
    assert _missing(real) == "BaseIncrementalDetokenizer.update"


@pytest.mark.vllm
def test_a_vllm_that_cannot_be_looked_at_is_tapped_too(real, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.detokenizer", None)
    assert lane_of(real) is None
    assert "vllm.v1.engine.detokenizer" in caplog.records[0].missing
