"""What several workers say, joined: metrics texts and backends."""

from __future__ import annotations

from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from anabranch.v1 import admin_pb2, session_pb2
from services.chassis.workers.exposition import merge
from services.router.admin_merge import merge_backends

ONE = """\
# HELP requests_total How many.
# TYPE requests_total counter
requests_total{model="m"} 3.0
# HELP waiting In line.
# TYPE waiting gauge
waiting 2.0
# HELP took_seconds Duration.
# TYPE took_seconds histogram
took_seconds_bucket{le="0.1"} 1.0
took_seconds_bucket{le="+Inf"} 2.0
took_seconds_count 2.0
took_seconds_sum 0.5
"""
TWO = """\
# HELP waiting In line.
# TYPE waiting gauge
waiting 5.0
# HELP requests_total How many.
# TYPE requests_total counter
requests_total{model="a{b} c"} 4.0
requests_total{} 1.0
# HELP only_here Something.
# TYPE only_here gauge
only_here 1.0
"""


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_series_is_kept_and_says_whose_it_is():
    found = samples(merge({"0": ONE, "1": TWO}))
    assert found[("requests_total", frozenset({("model", "m"), ("worker", "0")}))] == 3.0
    assert found[("requests_total", frozenset({("model", "a{b} c"), ("worker", "1")}))] == 4.0
    assert found[("requests_total", frozenset({("worker", "1")}))] == 1.0
    assert found[("waiting", frozenset({("worker", "0")}))] == 2.0
    assert found[("waiting", frozenset({("worker", "1")}))] == 5.0
    assert found[("took_seconds_count", frozenset({("worker", "0")}))] == 2.0
    assert len(found) == len(samples(ONE)) + len(samples(TWO))


def test_a_family_is_described_once_with_all_its_series_together():
    text = merge({"0": ONE, "1": TWO})
    lines = text.splitlines()
    for family in ("requests_total", "waiting", "took_seconds", "only_here"):
        assert sum(line.startswith(f"# TYPE {family} ") for line in lines) == 1
        where = [n for n, line in enumerate(lines) if line.startswith(family)]
        assert where == list(range(where[0], where[0] + len(where)))
    kinds = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert kinds == {
        "requests": "counter", "waiting": "gauge", "took_seconds": "histogram",
        "only_here": "gauge",
    }  # fmt: skip


def test_nothing_merges_to_nothing():
    assert merge({}) == ""
    assert merge({"0": ""}) == ""


def status(backend_id: str, **fields: object) -> admin_pb2.BackendStatus:
    made = admin_pb2.BackendStatus(
        backend_id=backend_id, state=admin_pb2.BACKEND_STATE_READY, models=["m"]
    )
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_requests_in_flight_are_added_up_and_ids_ordered():
    merged = merge_backends([[status("b", in_flight=2), status("a")], [status("b", in_flight=3)]])
    assert [(one.backend_id, one.in_flight) for one in merged] == [("a", 0), ("b", 5)]


def test_a_backend_that_one_worker_has_not_heard_of_is_not_ready():
    one, both = merge_backends([[status("a", zone="z"), status("b")], [status("b")]])
    assert one.state == admin_pb2.BACKEND_STATE_CONNECTING
    assert "not every worker" in one.detail
    assert (one.zone, list(one.models)) == ("z", ["m"])
    assert both.state == admin_pb2.BACKEND_STATE_READY
    lost = status("a", state=admin_pb2.BACKEND_STATE_LOST, detail="broken")
    (merged,) = merge_backends([[], [lost]])
    assert merged.detail == "broken"


def test_ready_is_said_only_when_every_worker_says_it():
    lost = status("b", state=admin_pb2.BACKEND_STATE_LOST, detail="broken")
    (merged,) = merge_backends([[status("b")], [lost], [status("b")]])
    assert merged.state == admin_pb2.BACKEND_STATE_LOST
    assert merged.detail == "broken"
    (merged,) = merge_backends([[status("b")], [status("b")]])
    assert merged.state == admin_pb2.BACKEND_STATE_READY
    assert merged.detail == ""


def test_the_freshest_report_and_every_model_are_told():
    old, new = status("b"), status("b", version="2")
    old.load.CopyFrom(session_pb2.LoadReport(running=1))
    old.load_age.FromMilliseconds(900)
    new.load.CopyFrom(session_pb2.LoadReport(running=7))
    new.load_age.FromMilliseconds(40)
    new.models.append("n")
    (merged,) = merge_backends([[old], [new]])
    assert merged.load.running == 7
    assert merged.load_age.ToMilliseconds() == 40
    assert list(merged.models) == ["m", "n"]
    assert merged.version == "2"


def test_what_one_worker_saw_is_returned_as_it_is():
    one = status("b", in_flight=4, zone="z", drained=True, detail="drained by an operator")
    assert merge_backends([[one]]) == [one]


def test_texts_in_openmetrics_make_one_with_everybody_s_exemplars():
    def text(trace: str) -> str:
        return (
            "# HELP ttft_seconds First\n# TYPE ttft_seconds histogram\n"
            "# UNIT ttft_seconds seconds\n"
            f'ttft_seconds_bucket{{le="1.0"}} 1.0 # {{trace_id="{trace}"}} 0.5 1700000000.0\n'
            'ttft_seconds_bucket{le="+Inf"} 1.0\nttft_seconds_count 1.0\nttft_seconds_sum 0.5\n'
            "# HELP seen Seen\n# TYPE seen counter\nseen_total 2.0\n# EOF\n"
        )

    merged = merge({"0": text("a" * 32), "1": text("b" * 32)})
    families = {family.name: family for family in openmetrics_families(merged)}
    assert set(families) == {"ttft_seconds", "seen"}
    assert families["ttft_seconds"].unit == "seconds"
    traced = {
        s.labels["worker"]: s.exemplar.labels["trace_id"][0]
        for s in families["ttft_seconds"].samples
        if s.exemplar
    }
    assert traced == {"0": "a", "1": "b"}
    assert [s.value for s in families["seen"].samples] == [2.0, 2.0]
