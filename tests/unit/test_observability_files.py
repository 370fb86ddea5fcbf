"""What Compose's Prometheus, Alertmanager, Grafana and collector are told is what is really there.

Prometheus' and Alertmanager's own tools check their files where Debian's packages are installed.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.compose import OURS, ROOT, every_service, mounts

PROMETHEUS = ROOT / "deploy/prometheus/prometheus.yml"
FILES = ROOT / "deploy/helm/anabranch/files"
DATASOURCES = ROOT / "deploy/grafana/provisioning/datasources/anabranch.yaml"
COLLECTOR = ROOT / "deploy/otel/collector.yaml"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian's prometheus is not installed")
def test_promtool_accepts_the_configuration_with_the_charts_rules(tmp_path):
    text = PROMETHEUS.read_text(encoding="utf-8")
    there = mounts(every_service()["prometheus"])["/etc/prometheus/rules"][0]
    assert (ROOT / there).resolve() == (FILES / "rules").resolve()
    changed = tmp_path / "prometheus.yml"
    changed.write_text(text.replace("/etc/prometheus/rules", str(FILES / "rules")))
    assert changed.read_text() != text
    run("promtool", "check", "config", str(changed))


@pytest.mark.skipif(shutil.which("amtool") is None, reason="Debian's package is not installed")
def test_amtool_accepts_the_alertmanagers_configuration():
    run("amtool", "check-config", str(ROOT / "deploy/prometheus/alertmanager.yml"))


def test_prometheus_scrapes_every_service_of_ours_where_it_answers():
    scraped = set()
    for job in read(PROMETHEUS)["scrape_configs"]:
        for static in job.get("static_configs", ()):
            scraped |= set(static["targets"])
        for found in job.get("dns_sd_configs", ()):
            assert found["type"] == "A"
            scraped |= {f"{name}:{found['port']}" for name in found["names"]}
    for name, (package, _) in OURS.items():
        settings = importlib.import_module(f"{package}.settings").Settings
        port = settings.__dataclass_fields__["http_listen"].default.rpartition(":")[2]
        aliases = every_service()[name].get("networks", {}).get("default", {}).get("aliases", [])
        assert f"{(aliases or [name])[0]}:{port}" in scraped
    assert {"127.0.0.1:9090", "collector:8888"} <= scraped


def test_prometheus_starts_with_the_files_that_are_mounted():
    service = every_service()["prometheus"]
    (path,) = (
        word.removeprefix("--config.file=")
        for word in service["command"]
        if word.startswith("--config.file=")
    )
    source, _ = mounts(service)[str(Path(path).parent)]
    assert (ROOT / source / Path(path).name).resolve() == PROMETHEUS


def test_alerts_go_to_an_alertmanager_that_may_be_missing():
    (told,) = read(PROMETHEUS)["alerting"]["alertmanagers"]
    (found,) = told["dns_sd_configs"]
    assert found["names"] == ["alertmanager"]
    alertmanager = every_service()["alertmanager"]
    assert alertmanager["profiles"] == ["alerts"]
    assert alertmanager["ports"] == [f"127.0.0.1:{found['port']}:{found['port']}"]


def test_grafana_knows_prometheus_and_jaeger_by_the_uids_that_dashboards_name():
    services = every_service()
    sources = {source["uid"]: source for source in read(DATASOURCES)["datasources"]}
    assert set(sources) == {"prometheus", "jaeger"}
    for uid, source in sources.items():
        assert source["type"] == uid
        host, _, port = source["url"].removeprefix("http://").partition(":")
        assert f"127.0.0.1:{port}:{port}" in services[host]["ports"]
    (link,) = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert link["datasourceUid"] in sources


def test_grafana_finds_the_charts_dashboards():
    (provider,) = read(ROOT / "deploy/grafana/provisioning/dashboards/anabranch.yaml")["providers"]
    service = every_service()["grafana"]
    source, mode = mounts(service)[provider["options"]["path"]]
    assert (ROOT / source).resolve() == (FILES / "dashboards").resolve()
    assert mode == "ro"
    assert mounts(service)["/etc/grafana/provisioning"][0] == "./deploy/grafana/provisioning"


def test_dashboards_name_no_other_source_of_numbers():
    known = {source["uid"] for source in read(DATASOURCES)["datasources"]}
    for path in sorted((FILES / "dashboards").glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        variables = {v["name"] for v in document.get("templating", {}).get("list", ())}
        for uid in re.findall(r'"uid": "([^"]+)"', json.dumps(document)):
            own = uid == document.get("uid") or uid in ("-- Grafana --", "grafana")
            assert own or uid in known or uid.strip("${}") in variables, (path.name, uid)


def test_who_only_looks_at_grafana_may_change_nothing_and_the_password_is_no_default():
    values = every_service()["grafana"]["environment"]
    assert values["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert len(values["GF_SECURITY_ADMIN_PASSWORD"]) == 64
    assert every_service()["grafana"]["ports"] == ["127.0.0.1:3000:3000"]


def test_every_service_of_ours_sends_its_traces_where_the_collector_listens():
    port = read(COLLECTOR)["receivers"]["otlp"]["protocols"]["http"]["endpoint"].split(":")[1]
    for name, (_, prefix) in OURS.items():
        values = every_service()[name]["environment"]
        assert values[f"{prefix}OTLP_ENDPOINT"] == f"http://collector:{port}"


def test_the_collectors_pipelines_use_what_it_has_and_leave_nothing_unused():
    document = read(COLLECTOR)
    pipelines = document["service"]["pipelines"]
    # The services send both, and complain where one is not taken.
    assert set(pipelines) == {"traces", "metrics"}
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in pipelines.values() for name in pipeline.get(kind, ())}
        assert used == set(document[kind])
    host = document["exporters"]["otlp/jaeger"]["endpoint"].partition(":")[0]
    assert host in every_service()
    source, _ = mounts(every_service()["collector"])["/etc/otel"]
    assert (ROOT / source / "collector.yaml").resolve() == COLLECTOR
