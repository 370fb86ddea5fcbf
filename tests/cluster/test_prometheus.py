"""A real Prometheus beside a real cluster: scrapes, rules, dashboards, an alert that fires."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from anabranch.vocabulary import Residency
from tests.support.hasty_rules import hasty
from tests.support.waiting import BOUND_S, until
from tools.cluster import Cluster, EngineKind, EngineSpec
from tools.cluster.prometheus import prometheus
from tools.cluster.recipes import SIM_MODEL
from tools.dashboards.__main__ import FOLDER
from tools.dashboards.asking import AskedPanel, Prometheus, panels
from tools.dashboards.limits import RULES
from tools.dashboards.scene import Callers, cluster, scraped, spoil_provider

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="there is no Prometheus: run `make servers`"
    ),
]

ENGINES = ("engine-1", "engine-2")

WITHOUT_DATA = {
    # The simulated engine is not vLLM.
    **{
        ("engine", title): "only vLLM has it"
        for title in (
            "Running and waiting",
            "Interrupted requests",
            "Prefix cache",
            "KV cache",
            "Tokens",
            "Time between tokens",
        )
    },
    ("auth", "Certificates"): "this cluster has no TLS",
    ("auth", "Quotas exceeded"): "this cluster has no quotas",
    ("router", "Quotas exceeded"): "this cluster has no quotas",
    ("cloud-cost", "Parameters left out"): "the simulator's profile takes them all",
}


async def value_of(source: Prometheus, expr: str) -> list[tuple[dict[str, str], float]]:
    data = await asyncio.to_thread(source.get, "query", query=expr)
    return [(row["metric"], float(row["value"][1])) for row in data["result"]]


async def state_of(source: Prometheus, alert: str) -> str:
    """inactive, pending or firing."""
    data = await asyncio.to_thread(source.get, "rules", type="alert")
    (rule,) = (r for g in data["groups"] for r in g["rules"] if r["name"] == alert)
    return str(rule["state"])


async def test_processes_rules_dashboards_and_alerts_work_together(tmp_path):
    small = {"MAX_NUM_SEQS": "2"}
    engines = [EngineSpec(name, EngineKind.SIM, SIM_MODEL, small) for name in ENGINES]
    async with cluster(tmp_path, engines, ttft_slo=0.3) as running:
        rules = hasty(RULES, tmp_path / "rules.yaml")
        watch = await running.launch(prometheus(tmp_path, scraped(running), [rules]))
        source = Prometheus(watch.spec.address)
        began = time.time()
        await everything_is_scraped(source, running)
        async with Callers(running, SIM_MODEL) as callers:
            await traffic(running, callers, source)
            await alerts_fire_while_nothing_serves(source, running, callers)
        await every_rule_is_evaluated(source)
        await every_panel_shows_something(source, began)
        await pictures_can_be_drawn(source, began, tmp_path)


async def everything_is_scraped(source: Prometheus, running: Cluster) -> None:
    jobs = {"router", "auth", "cloud", *ENGINES}
    assert set(scraped(running)) == jobs

    async def up() -> bool:
        # By job, so that a process that tells nothing of itself is missed.
        told = await value_of(source, 'up * on (job) group_left () target_info{service_name!=""}')
        return {labels["job"]: value for labels, value in told} == dict.fromkeys(jobs, 1.0)

    await until(up)


async def traffic(running: Cluster, callers: Callers, source: Prometheus) -> None:
    """Until Prometheus has seen both tiers, errors, cancelled requests and a failing provider."""

    async def seen() -> bool:
        await callers.together(36, 60)
        await callers.log_in_badly()
        await spoil_provider(running, 1)
        await callers.ask(5, Residency.CLOUD_ONLY)
        told = await value_of(
            source, "sum by (anabranch_tier, outcome) (rate(anabranch_router_requests_total[30s]))"
        )
        moving = {(row["anabranch_tier"], row["outcome"]) for row, value in told if value > 0}
        outcomes = {outcome for _, outcome in moving}
        spent = await value_of(source, "sum(rate(anabranch_cloud_cost_total[30s])) > 0")
        failed = await value_of(
            source,
            'sum(rate(gen_ai_client_operation_duration_seconds_count{error_type!=""}[30s])) > 0',
        )
        both = {("local", "ok"), ("cloud", "ok")} <= moving
        return bool(both and {"error", "cancelled"} <= outcomes and spent and failed)

    await until(seen)


async def alerts_fire_while_nothing_serves(
    source: Prometheus, running: Cluster, callers: Callers
) -> None:
    """The engines die, then the cloud proxy; when all are back, all is well again."""
    alerts = ("AnabranchNoBackends", "AnabranchNoLocalBackends", "AnabranchProcessDown")

    async def reached(alert: str, state: str) -> None:
        async def so() -> bool:
            return await state_of(source, alert) == state

        await until(so)

    assert await state_of(source, "AnabranchNoBackends") == "inactive"
    # Two requests, and an engine has two places: whichever dies, what it has begun fits the other.
    async with asyncio.TaskGroup() as group:
        begun = [asyncio.Event() for _ in range(2)]
        for event in begun:
            group.create_task(callers.follow(400, event))
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun)), BOUND_S)
        busy = {b.backend_id for b in await running.backends() if b.in_flight}
        first, second = sorted(ENGINES, key=lambda name: name not in busy)
        await running.kill(first)
    await running.kill(second)
    await reached("AnabranchNoLocalBackends", "firing")
    await reached("AnabranchProcessDown", "firing")
    await running.kill("cloud")
    await reached("AnabranchNoBackends", "firing")
    await asyncio.gather(*(running.restart(name) for name in (*ENGINES, "cloud")))
    for alert in alerts:
        await reached(alert, "inactive")
    assert await callers.ask(5)
    # A state may be too short for one who looks; Prometheus itself keeps each.
    states = await value_of(source, 'max_over_time(ALERTS{alertname="AnabranchNoBackends"}[2m])')
    assert {row["alertstate"] for row, _ in states} == {"pending", "firing"}


async def every_rule_is_evaluated(source: Prometheus) -> None:
    data = await asyncio.to_thread(source.get, "rules")
    rules = [rule for group in data["groups"] for rule in group["rules"]]
    faults = {rule["name"]: rule.get("lastError", "") for rule in rules if rule["health"] != "ok"}
    assert not faults
    assert len(rules) == RULES.read_text(encoding="utf-8").count("expr:")


async def every_panel_shows_something(source: Prometheus, began: float) -> None:
    empty = set()
    for file in sorted(FOLDER.glob("*.json")):
        dashboard = json.loads(file.read_text(encoding="utf-8"))
        for panel in await asyncio.to_thread(lambda d: list(panels(d, source, "10s")), dashboard):
            if not await asyncio.to_thread(has_data, source, panel, began):
                empty.add((file.stem, panel.title))
    assert empty == set(WITHOUT_DATA)


async def pictures_can_be_drawn(source: Prometheus, began: float, folder: Path) -> None:
    """Where there is matplotlib, which `make test` does not install."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    from tools.dashboards.picture import draw

    file = folder / "cluster.png"
    dashboard = json.loads((FOLDER / "cluster.json").read_text(encoding="utf-8"))
    await asyncio.to_thread(draw, dashboard, source, began, time.time(), file)
    assert file.read_bytes().startswith(b"\x89PNG")


def has_data(source: Prometheus, panel: AskedPanel, began: float) -> bool:
    """Whether some query of the panel gave a number since then. Raises QueryFailed."""
    found = [source.range(asked.expr, began, time.time(), 1.0) for asked in panel.queries]
    return any(number(value for _, value in line.points) for lines in found for line in lines)


def number(values: Iterable[float]) -> bool:
    return any(math.isfinite(value) for value in values)


def test_the_bound_of_one_wait_is_longer_than_any_alert_takes_in_a_hurry(tmp_path):
    text = hasty(RULES, tmp_path / "rules.yaml").read_text(encoding="utf-8")
    waits = [
        int(line.split("for: ")[1].rstrip("s\n")) for line in text.splitlines() if "for:" in line
    ]
    assert max(waits) < BOUND_S
    assert "m]" not in text
