"""docs/metrics.md names every metric of ours, with its type and labels, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from anabranch import AsyncClient, Residency
from anabranch.errors import AnabranchError
from services.chassis.settings import Secret
from services.chassis.workers.front import Front
from tests.support import tls
from tests.support.inprocess import MODEL, cluster
from tests.support.provider import KEY, routes_file, simulator

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/metrics.md"
OURS = ("anabranch_", "gen_ai_", "rpc_")
_UNITS = {"s": "_seconds", "By": "_bytes"}
_KINDS = {
    "create_histogram": "histogram",
    "create_counter": "counter",
    "create_observable_counter": "counter",
    "create_up_down_counter": "gauge",
    "create_observable_gauge": "gauge",
    "Gauge": "gauge",
    "Counter": "counter",
    "GaugeMetricFamily": "gauge",
    "CounterMetricFamily": "counter",
}


class Row(NamedTuple):
    """A row of the page."""

    type: str
    labels: frozenset[str]


def documented() -> dict[str, Row]:
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = re.fullmatch(r"`([a-z_]+)`", cells[0])
        if name and len(cells) == 5 and name[1].startswith(OURS):
            # What stands in brackets are values.
            labels = re.findall(r"`([a-z_]+)`", re.sub(r"\([^)]*\)", "", cells[2]))
            rows[name[1]] = Row(cells[1], frozenset(labels))
    # One row refers to the one above it.
    first = rows["gen_ai_server_time_to_first_token_seconds"].labels
    per_token = "gen_ai_server_time_per_output_token_seconds"
    rows[per_token] = Row(rows[per_token].type, rows[per_token].labels | first)
    return rows


def created() -> dict[str, str]:
    """Name and type of every instrument that the sources create under a literal name."""
    found = {}
    for path in (ROOT / "services").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            called = node.func.id if isinstance(node.func, ast.Name) else called
            first = node.args[0]
            if called not in _KINDS or not isinstance(first, ast.Constant):
                continue
            units = [k.value.value for k in node.keywords if k.arg == "unit"]  # type: ignore[attr-defined]
            name = str(first.value).replace(".", "_")
            suffix = _UNITS.get(units[0], "") if units else ""
            name += "" if name.endswith(suffix) else suffix
            if name.startswith(OURS):
                kind = _KINDS[called]
                found[name + ("_total" if kind == "counter" else "")] = kind
    return found


def shown(text: str) -> dict[str, Row]:
    """Name, type and labels of every metric of ours in a text."""
    found: dict[str, Row] = {}
    for family in text_string_to_metric_families(text):
        # The library tells when each of its counters began, as a metric of its own.
        if family.name.startswith(OURS) and not family.name.endswith("_created"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {key for s in family.samples for key, value in s.labels.items() if value}
            found[name] = Row(family.type, frozenset(labels - {"le", "worker"}))
    return found


async def test_the_page_names_what_running_processes_show_and_nothing_else(tmp_path):
    rows = documented()
    everything: dict[str, Row] = {}
    certificates = tls.made(tmp_path / "certificates")
    async with (
        simulator(KEY) as provider,
        cluster(tmp_path, certificates=certificates) as s,
    ):
        models = routes_file(tmp_path, provider.url)
        cloud = await s.add_cloud(models, api_keys=Secret(f"simulator={KEY}"), attempts=1)
        await s.backends_ready(2)
        assert s.router is not None
        async with AsyncClient(
            s.router.address,
            token=await s.token(),
            credentials=tls.credentials(certificates),
        ) as client:
            for model, residency in ((MODEL, None), ("cloud-chat", Residency.CLOUD_ONLY)):
                how = {"residency": residency} if residency else {}
                await client.generate(model=model, messages="story", max_tokens=3, **how)
            await provider.fault("5xx", status=500)
            for model in ("cloud-chat", "none"):
                try:
                    await client.generate(model=model, messages="story")
                except AnabranchError:
                    continue
        for host in (s.auth, s.router, s.engines[0].host, cloud):
            everything |= _joined(everything, shown(host.telemetry.prometheus_text()))
    everything |= shown(await Front("127.0.0.1:0", list, 2)._metrics())
    assert set(everything) - set(rows) == set(), "not in docs/metrics.md"
    for name, row in everything.items():
        assert row.type == rows[name].type, name
        assert row.labels <= rows[name].labels, name
    instruments = created()
    assert set(instruments) - set(rows) == set(), "not in docs/metrics.md"
    assert set(rows) - set(instruments) - set(everything) == set(), "nothing has these"
    for name, kind in instruments.items():
        assert kind == rows[name].type, name


def _joined(known: dict[str, Row], more: dict[str, Row]) -> dict[str, Row]:
    return {
        name: Row(row.type, row.labels | known[name].labels) if name in known else row
        for name, row in more.items()
    }
