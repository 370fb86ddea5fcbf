"""A real Prometheus with Compose's configuration scrapes a real cluster with two engines.

Only the addresses are this cluster's: what Compose resolves by name is given by port here.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from anabranch import AsyncClient
from tests.support.waiting import until
from tools.cluster import Cluster
from tools.cluster.ports import free_port
from tools.cluster.recipes import ROOT, SIM_MODEL, EngineKind, EngineSpec, Ports, at

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed"),
]

RULES = ROOT / "deploy/helm/anabranch/files/rules"


def configuration(targets: dict[str, list[str]]) -> dict[str, Any]:
    """Compose's own file with these targets, a scrape a second, and the chart's rules."""
    path = ROOT / "deploy/prometheus/prometheus.yml"
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    document["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    document["rule_files"] = [f"{RULES}/*.yaml"]
    del document["alerting"]
    jobs = {job["job_name"]: job for job in document["scrape_configs"]}
    assert {name for name in jobs if name.startswith("anabranch-")} == set(targets)
    document["scrape_configs"] = [
        {
            **{key: value for key, value in jobs[name].items() if not key.endswith("_configs")},
            "static_configs": [{"targets": addresses}],
        }
        for name, addresses in targets.items()
    ]
    return document


@contextmanager
def prometheus(folder: Path, document: dict[str, Any]) -> Iterator[str]:
    """A Prometheus of this test's own; the base of its addresses."""
    (folder / "prometheus.yml").write_text(yaml.safe_dump(document), encoding="utf-8")
    address = at(free_port())
    with (folder / "prometheus.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(60)


def asked(base: str, path: str) -> Any:
    """What Prometheus answers; None while it does not."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(base + path, timeout=5) as answer:
            return json.load(answer)["data"]
    except OSError:
        return None


def values(base: str, query: str) -> dict[str, float]:
    """The query's values by job and instance."""
    data = asked(base, f"/api/v1/query?{urllib.parse.urlencode({'query': query})}")
    found = data["result"] if data else []
    return {
        f"{one['metric'].get('job')} {one['metric'].get('instance')}": float(one["value"][1])
        for one in found
    }


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    engines = [EngineSpec(f"engine-{n}", EngineKind.SIM, SIM_MODEL) for n in (1, 2)]
    async with Cluster(folder, engines=engines, ports=Ports.free()) as started:
        yield started


async def test_prometheus_of_compose_scrapes_every_process_of_a_cluster(tmp_path):
    async with cluster(tmp_path / "cluster") as running:
        http = {name: process.record.http for name, process in running.processes.items()}
        targets = {
            "anabranch-router": [http["router"]],
            "anabranch-engine": [http["engine-1"], http["engine-2"]],
            "anabranch-cloud": [http["cloud"]],
            "anabranch-auth": [http["auth"]],
        }
        expected = {f"{job} {one}": 1.0 for job, many in targets.items() for one in many}
        with prometheus(tmp_path, configuration(targets)) as base:

            async def all_up() -> bool:
                return await asyncio.to_thread(values, base, "up") == expected

            await until(all_up)
            async with AsyncClient(
                running.router,
                auth_target=running.auth,
                client_id="demo",
                client_secret=running.credentials["demo"],
            ) as client:
                await client.generate(model=SIM_MODEL, prompt="hello", max_tokens=4)

            async def counted() -> bool:
                query = "gen_ai_server_request_duration_seconds_count > 0"
                found = await asyncio.to_thread(values, base, query)
                return any(key.startswith("anabranch-router") for key in found)

            await until(counted)
            groups = (await asyncio.to_thread(asked, base, "/api/v1/rules"))["groups"]
            ill = [r["name"] for g in groups for r in g["rules"] if r["health"] == "err"]
            assert ill == []
            assert len({group["file"] for group in groups}) == len(list(RULES.glob("*.yaml")))
