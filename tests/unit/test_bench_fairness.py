"""What a crowd does to others is told against being alone in the same round."""

from __future__ import annotations

import math

from bench.dataplane import fairness
from bench.dataplane.fairness import Way
from bench.dataplane.plan import Cell

CROWD = Cell(1000, 20, sessions=1)


def sample(way: Way, number: int, p99: float) -> dict[str, object]:
    return {
        "way": way.value,
        "crowd": "" if way is Way.ALONE else CROWD.name,
        "round": number,
        "errors": {},
        "gap_p50_ms": 20.0,
        "gap_p99_ms": p99,
        "crowd_tokens_per_second": math.nan if way is Way.ALONE else 50_000.0,
        "cores": {"proxy": 0.3, "engine": 0.2},
    }


def test_each_round_is_held_against_itself():
    samples = [
        sample(Way.ALONE, 0, 20.0),
        sample(Way.THROUGH, 0, 22.0),
        # A round in which the machine was busy: both suffer.
        sample(Way.ALONE, 1, 40.0),
        sample(Way.THROUGH, 1, 44.0),
    ]
    alone, through = fairness.rows([CROWD], samples)
    assert alone["p99_to_alone"]["median"] == 1.0
    assert through["p99_to_alone"] == {"median": 1.1, "min": 1.1, "max": 1.1}
    page = "\n".join(fairness.section({"form": "session", "rows": [alone, through]}))
    assert "| 20ms-1000x256-over1 | through | 20.0 | 33.0 (22.0–44.0) | 1.10 | 50,000 |" in page
