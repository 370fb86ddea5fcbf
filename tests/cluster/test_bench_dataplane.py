"""The data plane's benchmark runs end to end, and records it well-formed.

With the router alone, and with those gateways that are installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.dataplane import gateways

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
PATHS = (
    *("direct-session", "direct-plain", "router-session", "router-plain"),
    # These have no counterpart in the sim engine.
    *("direct-lean", "direct-http"),
)
GATEWAYS = {"litellm": gateways.LITELLM, "smg": gateways.SMG, "smg-grpc": gateways.SMG}


def run(out: Path, *arguments: str) -> Path:
    # On a busy machine, too, something arrives within two seconds.
    command = (sys.executable, "-m", "bench.dataplane", "run", "--smoke", "--window", "2")
    done = subprocess.run(
        (*command, *arguments, "--out", str(out)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module", params=["fake", "sim"])
def written(request, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bench")
    return run(out, "--engine", request.param, "--streams", "2", "--tokens", "8", "--paths", *PATHS)


def test_each_path_is_measured_under_each_load_without_an_error(written):
    record = json.loads((written / "dataplane.json").read_text())
    looks = {(sample["cell"], sample["path"]) for sample in record["samples"]}
    paths = PATHS if record["engine"] == "fake" else PATHS[:-2]
    assert looks == {(cell, path) for cell in ("20ms-2x8", "unpaced-2x8") for path in paths}
    assert [sample["errors"] for sample in record["samples"]] == [{}] * len(looks)
    assert all(sample["tokens"] > 0 for sample in record["samples"])


def test_a_row_has_the_cost_of_the_router_and_none_of_a_direct_path(written):
    rows = json.loads((written / "dataplane.json").read_text())["rows"]
    for row in rows:
        cost = row["cpu_us_per_token"]["median"]
        assert (cost is None) == row["path"].startswith("direct")
        assert cost is None or cost > 0
    session = next(row for row in rows if row["path"] == "router-session")
    assert session["added_ttft_p50_ms"]["median"] is not None
    assert session["rss_peak_mib"]["median"] > 10


def test_the_page_tells_machine_commit_and_every_path(written):
    page = (written / "dataplane.md").read_text()
    commit = json.loads((written / "dataplane.json").read_text())["circumstances"]["commit"]
    assert commit[:12] in page
    for label in ("Anabranch router, Session", "direct, StreamGenerate"):
        assert label in page


@pytest.mark.parametrize("gateway", sorted(GATEWAYS))
def test_an_installed_gateway_has_a_row_beside_its_direct_path(gateway, tmp_path):
    if not gateways.installed(GATEWAYS[gateway]):
        pytest.skip(f"{gateways.INSTALL[gateway]} has not been run")
    out = run(tmp_path, "--streams", "2", "--tokens", "8", "--paths", "direct-http", gateway)
    record = json.loads((out / "dataplane.json").read_text())
    assert [sample["errors"] for sample in record["samples"]] == [{}] * 4
    rows = {row["path"]: row for row in record["rows"] if row["pace_ms"]}
    assert rows[gateway]["cpu_us_per_token"]["median"] > 0
    assert rows[gateway]["added_ttft_p50_ms"]["median"] is not None
    assert rows["direct-http"]["cpu_us_per_token"]["median"] is None
    assert record["circumstances"]["versions"][gateway.partition("-")[0]]
