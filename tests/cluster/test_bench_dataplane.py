"""The data plane's benchmark runs end to end with the router alone, and records it well-formed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
PATHS = ("direct-session", "direct-plain", "router-session", "router-plain", "direct-lean")


@pytest.fixture(scope="module", params=["fake", "sim"])
def written(request, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bench")
    command = (
        *(sys.executable, "-m", "bench.dataplane", "run", "--smoke", "--engine", request.param),
        *("--paths", *PATHS, "--out", str(out)),
    )
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_each_path_is_measured_under_each_load_without_an_error(written):
    record = json.loads((written / "dataplane.json").read_text())
    looks = {(sample["cell"], sample["path"]) for sample in record["samples"]}
    # The sim engine has no lean door.
    paths = PATHS if record["engine"] == "fake" else PATHS[:-1]
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
