"""The engine benchmark runs end to end, and a path that fails costs only its own looks.

The simulated engine stands for vLLM; speeds are not looked at: the machine may be busy.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]


def run(out: Path, *options: str) -> tuple[int, dict, str]:
    done = subprocess.run(
        (
            *(sys.executable, "-m", "bench.engine", "run", "--simulated", "--rounds", "2"),
            *("--output-tokens", "12", "--cancels", "1", "--out", str(out), *options),
        ),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=115,
    )
    assert (out / "engine.json").exists(), done.stdout + done.stderr
    return done.returncode, json.loads((out / "engine.json").read_text()), done.stdout


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("engine")
    status, record, said = run(out, "--streams", "1", "24", "--session-clients", "2")
    assert status == 0, said
    return out, record


def test_every_request_of_every_look_is_answered_whole(written):
    _, record = written
    looks = {(s["path"], s["streams"], s["round"]) for s in record["samples"]}
    assert looks == {
        (path, streams, number)
        for path in ("session", "router")
        for streams in (1, 24)
        for number in (0, 1)
    }
    for sample in record["samples"]:
        assert sample["whole"] == sample["requests"] == max(4, sample["streams"])
        assert sample["tokens"] == 12 * sample["requests"]
        assert not sample["failures"]
        assert sample["cpu_us_per_token"] > 0


def test_a_cancelled_stream_is_seen_to_leave_its_slot_to_the_one_that_waits(written):
    _, record = written
    (cancel,) = record["cancels"]
    assert cancel["slot_ms"] > 0
    assert cancel["kv_ms"] > 0


def test_the_page_says_that_nothing_real_was_measured(written):
    out, _ = written
    page = (out / "engine.md").read_text()
    assert "**Simulated engine: no model ran" in page
    assert "| 24 | Anabranch router, session |" in page


def test_the_page_can_be_made_anew_from_the_figures(written):
    out, _ = written
    before = (out / "engine.md").read_text()
    (out / "engine.md").unlink()
    subprocess.run(
        (
            *(sys.executable, "-m", "bench.engine", "report"),
            *("--from", str(out / "engine.json")),
        ),
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert (out / "engine.md").read_text() == before


def test_time_that_runs_out_leaves_a_page_of_what_there_is(tmp_path):
    # No time for anything but what starts at once.
    _, record, _ = run(tmp_path, "--streams", "1", "--paths", "session", "--budget", "0.001")
    assert record["cut"]
    assert record["samples"] == []
