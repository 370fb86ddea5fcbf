"""Draws the dashboards' pictures in the documentation: a cluster under load, seen by a Prometheus.

`make dashboard-pictures` runs it: a vLLM engine with the small model, the cloud proxy with the
provider simulator, eight minutes of callers who come in bursts, a provider that fails for a moment,
an engine that is killed and started again. Prices, budgets and ratings are invented (scene.py).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from anabranch.vocabulary import Residency
from tools.cluster import Cluster, ClusterError, EngineKind, EngineSpec
from tools.cluster.prometheus import prometheus
from tools.cluster.recipes import MODEL, ROOT
from tools.dashboards.__main__ import FOLDER
from tools.dashboards.asking import Prometheus, QueryFailed
from tools.dashboards.limits import RULES
from tools.dashboards.picture import draw
from tools.dashboards.scene import Callers, cluster, scraped, spare_provider, spoil_provider

IMAGES = ROOT / "docs/images"
ENGINE = "engine-1"
TOKENS = 40


def tell(line: str) -> None:
    """Progress."""
    print(f"  {line}", flush=True)


async def load(callers: Callers, going: Callable[[], bool], at_once: int, pause: float) -> None:
    """Groups of callers, one after the other, for as long as `going` says so."""
    while going():
        await callers.together(at_once, TOKENS)
        await asyncio.sleep(pause)


def lasting(seconds: float) -> Callable[[], bool]:
    """True for so long from now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end


async def mishaps(running: Cluster, callers: Callers) -> None:
    """Wrong secrets and refusals by the provider, spread over some seconds, as rates need it."""
    for _ in range(10):
        await callers.log_in_badly()
        await spoil_provider(running, 2)
        await callers.ask(TOKENS, Residency.CLOUD_ONLY)
        await asyncio.sleep(2.0)


async def run(folder: Path, kind: EngineKind, minutes: float, images: Path) -> None:
    """Starts everything, drives it, draws, and ends everything."""
    share = minutes * 60 / 8
    engine = EngineSpec(ENGINE, kind, MODEL, {"MAX_NUM_SEQS": "4"})
    tell(f"starting a {kind} engine, the cloud proxy, the router, Consul and auth")
    async with cluster(folder, [engine], ttft_slo=4.0) as running:
        watch = await running.launch(prometheus(folder, scraped(running), [RULES], interval="2s"))
        source = Prometheus(watch.spec.address)
        began = time.time()
        async with Callers(running, MODEL) as callers:
            tell(f"Prometheus at http://{watch.spec.address}; a calm start")
            await load(callers, lasting(1.5 * share), 2, 1.0)
            tell("a burst: the excess goes to the cloud")
            await load(callers, lasting(1.5 * share), 14, 1.0)
            tell("calm; somebody guesses a secret, and the provider fails for a moment")
            await asyncio.gather(
                load(callers, lasting(1.5 * share), 3, 1.0), mishaps(running, callers)
            )
            await spare_provider(running)
            tell(f"{ENGINE} is killed, in the midst of answers, and started again")
            over = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(load(callers, lambda: not over.is_set(), 6, 1.0))
                await asyncio.sleep(share / 4)
                await running.kill(ENGINE)
                await asyncio.sleep(share)
                await running.restart(ENGINE)
                await asyncio.sleep(2 * share)
                over.set()
        for file in sorted(FOLDER.glob("*.json")):
            dashboard = json.loads(file.read_text(encoding="utf-8"))
            picture = images / f"dashboard-{file.stem}.png"
            draw(dashboard, source, began, time.time(), picture)
            tell(f"drew {picture}")


def main() -> int:
    """Parses the arguments and runs; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.dashboards.pictures", description=__doc__
    )
    parser.add_argument(
        "--engine",
        type=EngineKind,
        choices=list(EngineKind),
        default=EngineKind.VLLM,
        help="vllm, or sim for a quick look (default vllm)",
    )
    parser.add_argument("--minutes", type=float, default=8, help="of load (%(default)s)")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder (docs/images)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="anabranch-pictures-") as folder:
        try:
            asyncio.run(run(Path(folder), options.engine, options.minutes, options.out))
        except (ClusterError, QueryFailed) as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
