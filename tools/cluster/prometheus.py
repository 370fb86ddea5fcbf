"""What a Prometheus beside a cluster is started with: its configuration, its ports, its rules.

It scrapes the processes that the cluster has started, each a job of its own. Nothing is started
here; `Cluster.launch` starts it like any other process. Debian calls the package `prometheus`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.cluster.ports import free_port
from tools.cluster.process import ClusterError, ProcessSpec
from tools.cluster.recipes import at


def prometheus(
    run_dir: Path, targets: Mapping[str, str], rules: Sequence[Path], *, interval: str = "1s"
) -> ProcessSpec:
    """A Prometheus that scrapes `targets`, job → host:port, and evaluates `rules`, each `interval`.

    Writes its configuration into `run_dir`. Raises ClusterError where there is no Prometheus.
    """
    binary = shutil.which("prometheus")
    if binary is None:
        raise ClusterError("there is no Prometheus: run `make servers`, or put it on PATH")
    folder = run_dir / "prometheus"
    folder.mkdir(parents=True, exist_ok=True)
    configuration = {
        "global": {
            "scrape_interval": interval,
            "scrape_timeout": interval,
            "evaluation_interval": interval,
        },
        "rule_files": [str(path.resolve()) for path in rules],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [address]}]}
            for job, address in targets.items()
        ],
    }
    # JSON is YAML.
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(configuration, indent=2) + "\n", encoding="utf-8")
    address = at(free_port())
    return ProcessSpec(
        name="prometheus",
        argv=(
            *(binary, f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"),
            *(f"--web.listen-address={address}", "--log.level=warn"),
        ),
        probe="http",
        address=address,
        start_timeout=60.0,
        drain=10.0,
    )
