"""The overflow benchmark runs end to end, and what it promises at any speed is kept.

Delays and costs are not looked at: the machine may be busy.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("overflow")
    done = subprocess.run(
        (
            *(sys.executable, "-m", "bench.overflow", "run", "--smoke"),
            *("--strategies", "router", "--out", str(out)),
        ),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=115,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def record(written):
    return json.loads((written / "overflow.json").read_text())


def looks(record):
    return [*record["samples"], *record["kills"]]


def test_no_private_request_reaches_the_provider(record):
    assert sum(look["private"]["requests"] for look in looks(record)) > 0
    assert record["provider"]["private"] == 0


def test_every_allowed_request_gets_its_whole_answer_token_by_token(record):
    for look in looks(record):
        allowed = look["allowed"]
        assert allowed["requests"] > 0
        assert allowed["served"] == allowed["requests"], look["failures"]
        assert allowed["inexact"] == 0


def test_every_private_request_is_answered_or_refused_honestly(record):
    for look in looks(record):
        assert look["private"]["broken"] == 0, look["failures"]
        assert look["private"]["inexact"] == 0


def test_what_the_receipts_say_of_the_cloud_is_what_the_provider_saw(record):
    for look in looks(record):
        # A repeated call is seen twice and answered once.
        assert look["provider_seen"] >= look["allowed"]["cloud"]
        assert look["unexplained"] == 0
        assert sum(look["reasons"].values()) >= look["allowed"]["cloud"]
        assert (look["allowed"]["cost_microusd"] > 0) == (look["allowed"]["cloud"] > 0)
        assert look["private"]["cost_microusd"] == 0


def test_the_capacity_is_no_more_than_the_engines_can_make(record):
    capacity = record["capacity"]
    assert 0 < capacity["tokens_per_second"] <= 1.1 * capacity["modelled_tokens_per_second"]


def test_what_lost_its_engine_went_on_without_a_wrong_token(record):
    (killed,) = record["kills"]
    assert killed["exact"] == killed["hit"]


def test_the_page_is_written_with_its_promises(written):
    page = (written / "overflow.md").read_text()
    assert "| private requests at the provider | the whole run | 0  | ≤ 0 | yes |" in page
    assert "the provider simulator" in " ".join(page.split())
