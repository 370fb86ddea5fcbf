"""The benchmark of authentication runs end to end, and what it promises at any speed is kept.

Costs, rates and delays are not looked at: the machine may be busy.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.auth import timing
from bench.auth.issuance import EXCHANGE, FIRST, REPEATED, SIGNING
from bench.auth.plan import SECTIONS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
# Quotas have a module of their own, with tests of its own.
HERE = SECTIONS[:-1]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("auth")
    done = subprocess.run(
        (
            *(sys.executable, "-m", "bench.auth", "run", "--quick"),
            *("--sections", *HERE, "--out", str(out)),
        ),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def record(written):
    return json.loads((written / "auth.json").read_text())


def test_every_way_to_verify_has_a_cost_beside_its_baseline(record):
    (look,) = record["verification"]
    for name in ("new EdDSA", "new ES256", "RPC with guard"):
        assert look[name]["cpu_us"] > 0
    assert 0 < look["cached token"]["cpu_us"] < look["new EdDSA"]["cpu_us"]
    assert look["bare EdDSA"]["cpu_us"] > 0


def test_every_kind_of_token_has_a_rate(record):
    (look,) = record["issuance"]
    for name in (FIRST, REPEATED, EXCHANGE, SIGNING):
        assert look[name]["a_second"] > 0
        assert look[name]["cpu_us"] > 0


def test_no_call_fails_while_keys_rotate_and_each_of_them_signs(record):
    rotation = record["rotation"]
    assert rotation["failures"] == {}
    assert rotation["calls"] > 0
    # The first key signs before any rotation.
    assert rotation["keys_that_signed"] == rotation["rotations"] + 1


def test_every_revocation_is_noticed_at_both_replicas(record):
    for by_kind in record["revocation"].values():
        for by_replica in by_kind.values():
            counts = [len(seconds) for seconds in by_replica.values()]
            assert counts == [record["plan"]["revocations"]] * 2


def test_as_many_refusals_of_what_exists_as_of_what_does_not_are_timed(record):
    plan = record["plan"]
    asked = {
        timing.BUSY: plan["busy_key_samples"],
        timing.CALM: plan["calm_key_samples"],
        timing.LOGINS: plan["login_samples"],
    }
    found = {name: look["samples"] for name, look in record["timing"].items()}
    assert found == {name: [count, count] for name, count in asked.items()}


def test_the_page_tells_machine_commit_and_every_target(written, record):
    page = (written / "auth.md").read_text()
    assert record["circumstances"]["commit"][:12] in page
    for words in ("tokens a second of one core", "rotations", "p99", "of refusals"):
        assert words in page
    assert "proves nothing" in page
