"""What the chart makes for operators: certificates, secrets, scaling, metrics and dashboards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.support.chart import (
    CASES,
    COMPONENT,
    EXAMPLES,
    changed,
    environment,
    named,
    needs_helm,
    of_kind,
    pods,
    rendered,
    services_pods,
)
from tests.support.chart import chart as chart
from tools.chart import helm
from tools.chart.helm import ROOT, Case, Object

pytestmark = needs_helm

RULES = """\
groups:
  - name: anabranch
    rules:
      - alert: EngineHung
        expr: anabranch_engine_hung > 0
        for: 1m
        annotations:
          summary: '{{ $labels.pod }} hangs'
          description: |
            {{ with query "up" }}{{ . | first | value | humanize }}{{ end }}
"""


def example(chart: Path, name: str) -> list[Object]:
    return rendered(chart, next(case for case in EXAMPLES if case.name == name))


# TLS


def test_each_service_has_a_certificate_of_its_name_in_the_registry(chart: Path):
    objects = example(chart, "gpu-cluster")
    reviewed = yaml.safe_load_all((ROOT / "deploy/cert-manager/certificates.yaml").read_text())
    wanted = {
        one["metadata"]["name"]: one["spec"]
        for one in reviewed
        if one["kind"] == "Certificate" and not one["spec"].get("isCA")
    }
    assert set(wanted) == {
        f"anabranch-{n}" for n in ("auth", "engine", "cloud", "router", "client")
    }
    for identity, spec in wanted.items():
        (made,) = [
            one["spec"]
            for one in of_kind(objects, "Certificate")
            if one["spec"]["dnsNames"][0] == spec["dnsNames"][0]
        ]
        for key in ("duration", "renewBefore", "usages", "privateKey"):
            assert made[key] == spec[key], (identity, key)
        assert made["issuerRef"]["kind"] == "ClusterIssuer"


def test_certificates_hold_the_names_that_callers_and_services_dial(chart: Path):
    objects = example(chart, "gpu-cluster")
    names = {
        one["spec"]["secretName"]: set(one["spec"]["dnsNames"])
        for one in of_kind(objects, "Certificate")
    }
    assert "models.example.org" in names["anabranch-router-tls"]
    services = {one["metadata"]["name"] for one in of_kind(objects, "Service")}
    for service in services:
        secret = service.removesuffix("-headless") + "-tls"
        assert f"{service}.anabranch.svc.cluster.local" in names[secret]
    tester = named(objects, "Pod", "anabranch-test")["spec"]["containers"][0]["env"]
    for one in tester:
        if one["name"].endswith("TARGET"):
            host = one["value"].partition(":")[0]
            assert any(host in dns for dns in names.values())


def test_services_demand_certificates_of_each_other_and_of_callers_when_told(chart: Path):
    for demanded in (False, True):
        objects = changed(chart, "one-gpu", tls__callersShowCertificates=demanded)
        found = {
            labels[COMPONENT]: next(
                v for k, v in environment(spec).items() if k.endswith("_TLS_CLIENT_AUTH")
            )
            for _, labels, spec in services_pods(objects)
        }
        callers = "required" if demanded else "none"
        assert found == {
            "router": callers,
            "auth": callers,
            "engine": "required",
            "cloud-proxy": "required",
        }


def test_without_an_issuer_the_release_makes_an_authority_of_its_own(chart: Path):
    objects = example(chart, "one-gpu")
    assert {one["metadata"]["name"] for one in of_kind(objects, "Issuer")} == {
        "anabranch-self-signed",
        "anabranch-ca",
    }
    authority = named(objects, "Certificate", "anabranch-ca")["spec"]
    assert authority["isCA"]
    assert authority["privateKey"]["rotationPolicy"] == "Never"


def test_existing_certificates_are_mounted_and_none_are_made(chart: Path):
    objects = example(chart, "air-gapped")
    assert not of_kind(objects, "Certificate", "Issuer")
    for _, labels, spec in services_pods(objects):
        (tls,) = [volume for volume in spec["volumes"] if volume["name"] == "tls"]
        assert tls["secret"]["secretName"] == f"anabranch-{labels[COMPONENT]}-tls"
        (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "tls"]
        assert "subPath" not in mount  # such a file is never renewed


# Callers from outside


def test_a_route_of_the_gateway_api_leads_to_the_routers_service(chart: Path):
    route = {"enabled": True, "parentRefs": [{"name": "edge"}], "hostnames": ["models.example.org"]}
    objects = changed(chart, router__grpcRoute=route)
    spec = named(objects, "GRPCRoute", "anabranch-router")["spec"]
    assert spec["parentRefs"] == [{"name": "edge"}]
    (backend,) = spec["rules"][0]["backendRefs"]
    service = named(objects, "Service", backend["name"])["spec"]
    assert backend["port"] in [port["port"] for port in service["ports"]]


@pytest.mark.parametrize("mode", ["none", "certManager"])
def test_a_service_says_which_protocol_it_speaks(chart: Path, mode: str):
    for service in of_kind(changed(chart, tls__mode=mode), "Service"):
        (grpc,) = [port for port in service["spec"]["ports"] if port["name"] == "grpc"]
        assert grpc["appProtocol"] == ("kubernetes.io/h2c" if mode == "none" else "https")


# External secrets


def test_external_secrets_bring_what_pods_mount(chart: Path):
    objects = example(chart, "gpu-cluster")
    made = {one["metadata"]["name"]: one["spec"] for one in of_kind(objects, "ExternalSecret")}
    assert {"anabranch-identities", "anabranch-auth-keys", "anabranch-redis"} <= set(made)
    spec = made["anabranch-identities"]
    assert spec["secretStoreRef"] == {"name": "vault", "kind": "ClusterSecretStore"}
    assert spec["dataFrom"] == [{"extract": {"key": "anabranch/identities"}}]
    assert not of_kind(objects, "Secret")


# KEDA


def test_keda_scales_a_pool_by_what_waits_and_runs_in_it(chart: Path):
    objects = example(chart, "gpu-cluster")
    scaled = named(objects, "ScaledObject", "anabranch-engine-qwen-7b")["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (2, 12)
    triggers = {one["name"]: one["metadata"] for one in scaled["triggers"]}
    assert triggers["waiting"]["query"] == (
        'sum(anabranch_engine_waiting{namespace="anabranch",pool="qwen-7b"})'
    )
    assert triggers["waiting"]["threshold"] == "8"
    assert float(triggers["busy"]["threshold"]) == 0.8
    # A pool that nobody scrapes is not one that has nothing to do.
    assert {one["ignoreNullValues"] for one in triggers.values()} == {"false"}
    assert scaled["fallback"]["behavior"] == "currentReplicasIfHigher"
    # The label that the queries select by is one that the monitor gives.
    (endpoint,) = named(objects, "PodMonitor", "anabranch-engine")["spec"]["podMetricsEndpoints"]
    assert endpoint["relabelings"] == [
        {"sourceLabels": ["__meta_kubernetes_pod_label_anabranch_io_pool"], "targetLabel": "pool"}
    ]


# Metrics


@pytest.mark.parametrize(
    ("name", "kind", "endpoints"),
    [
        ("gpu-cluster", "PodMonitor", "podMetricsEndpoints"),
        ("air-gapped", "ServiceMonitor", "endpoints"),
    ],
)
def test_every_service_is_scraped_once_over_tls(chart: Path, name: str, kind: str, endpoints: str):
    objects = example(chart, name)
    targets = pods(objects) if kind == "PodMonitor" else ()
    found = {labels[COMPONENT] for _, labels, _ in targets} or {
        one["metadata"]["labels"][COMPONENT] for one in of_kind(objects, "Service")
    }
    monitors = of_kind(objects, kind)
    assert {one["metadata"]["labels"][COMPONENT] for one in monitors} == found - {"tester"}
    for one in monitors:
        (endpoint,) = one["spec"][endpoints]
        component = one["metadata"]["labels"][COMPONENT]
        assert endpoint["port"] == "http"
        assert endpoint["scheme"] == "https"
        assert (
            endpoint["tlsConfig"]["serverName"] == f"anabranch-{component.removesuffix('-proxy')}"
        )
        if kind == "ServiceMonitor":
            selected = [
                service["metadata"]["name"]
                for service in of_kind(objects, "Service")
                if one["spec"]["selector"]["matchLabels"].items()
                <= service["metadata"]["labels"].items()
            ]
            assert selected == [f"anabranch-{component}-headless"]


def test_without_tls_metrics_are_read_as_plain_text(chart: Path):
    objects = changed(chart, monitoring__podMonitor={"enabled": True})
    for one in of_kind(objects, "PodMonitor"):
        assert "scheme" not in one["spec"]["podMetricsEndpoints"][0]


@pytest.fixture
def stocked(tmp_path: Path) -> Path:
    """The chart with two rule files and two dashboards, and none of those that come with it."""
    copy = helm.copy_with_stand_in(tmp_path / "anabranch")
    for folder in ("rules", "dashboards"):
        place = copy / "files" / folder
        place.mkdir(exist_ok=True)
        for path in place.iterdir():
            path.unlink()
    (copy / "files/rules/alerts.yaml").write_text(RULES)
    (copy / "files/rules/more_rules.yaml").write_text("groups: []\n")
    dashboard = {"title": "Overview", "panels": [{"legendFormat": "{{pod}} $__interval"}]}
    for name in ("overview", "cost_of_cloud"):
        (copy / f"files/dashboards/{name}.json").write_text(json.dumps(dashboard, indent=1))
    return copy


WATCHED = Case(
    "watched",
    "",
    {
        "monitoring": {
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboards": {"enabled": True, "annotations": {"folder": "LLM"}},
        }
    },
)


def test_rules_arrive_as_they_are_with_prometheus_own_templates(stocked: Path):
    objects = helm.render(stocked, WATCHED)
    rules = {one["metadata"]["name"]: one for one in of_kind(objects, "PrometheusRule")}
    assert set(rules) == {"anabranch-alerts", "anabranch-more-rules"}
    assert rules["anabranch-alerts"]["spec"] == yaml.safe_load(RULES)
    assert rules["anabranch-alerts"]["metadata"]["labels"]["release"] == "prometheus"


def test_dashboards_arrive_as_they_are_with_the_sidecars_label(stocked: Path):
    objects = helm.render(stocked, WATCHED)
    maps = {
        one["metadata"]["name"]: one
        for one in of_kind(objects, "ConfigMap")
        if "dashboard" in one["metadata"]["name"]
    }
    assert set(maps) == {"anabranch-dashboard-overview", "anabranch-dashboard-cost-of-cloud"}
    found = maps["anabranch-dashboard-overview"]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"] == {"folder": "LLM"}
    kept = (stocked / "files/dashboards/overview.json").read_text()
    assert found["data"]["overview.json"] == kept


def test_a_chart_without_rules_and_dashboards_is_complete(stocked: Path):
    for path in (*stocked.glob("files/rules/*"), *stocked.glob("files/dashboards/*")):
        path.unlink()
    before = len(helm.render(stocked, Case("defaults")))
    assert len(helm.render(stocked, WATCHED)) == before


def test_what_comes_with_the_chart_arrives_whole(chart: Path):
    objects = helm.render(chart, WATCHED)
    for path in sorted((helm.CHART / "files/rules").glob("*.yaml")):
        name = f"anabranch-{path.stem.replace('_', '-').lower()}"
        assert named(objects, "PrometheusRule", name)["spec"] == yaml.safe_load(path.read_text())
    for path in sorted((helm.CHART / "files/dashboards").glob("*.json")):
        name = f"anabranch-dashboard-{path.stem.replace('_', '-').lower()}"
        found = named(objects, "ConfigMap", name)["data"][path.name]
        assert json.loads(found) == json.loads(path.read_text())
        assert len(found.encode()) < 1_000_000, "larger than a ConfigMap may be"


# helm test


def test_the_test_pod_is_a_hook_that_asks_as_a_caller(chart: Path):
    objects = rendered(chart, CASES[0])
    pod = named(objects, "Pod", "anabranch-test")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod["spec"]["containers"]
    assert container["image"] == "anabranch/router:0.1.0"
    script = named(objects, "ConfigMap", "anabranch-test")["data"]["smoke.py"]
    assert script.rstrip() == (helm.CHART / "files/tests/smoke.py").read_text().rstrip()
    assert not of_kind(changed(chart, tests__enabled=False), "Pod")


def test_secrets_that_are_there_are_kept_by_an_upgrade(chart: Path):
    """`lookup` answers only in a cluster: here it is shown that the chart asks it for each Secret
    and key before it makes one, and that nothing else makes any."""
    template = (helm.CHART / "templates/secrets.yaml").read_text()
    assert template.count("randAlphaNum") == 1
    kept = template[template.index('define "anabranch.kept"') : template.index("randAlphaNum")]
    assert 'lookup "v1" "Secret" .root.Release.Namespace .secret' in kept
    assert "index $data .key | default" in kept
    others = [p for p in (helm.CHART / "templates").rglob("*") if p.name != "secrets.yaml"]
    assert not [p for p in others if p.is_file() and "randAlphaNum" in p.read_text()]
    upgraded = helm.render(chart, CASES[0], upgrade=True)
    assert len(of_kind(upgraded, "Secret")) == 2


@pytest.mark.parametrize(
    ("given", "expr"),
    [(50, "vector(50)"), (0.5, "vector(0.5)"), ("vector(50) and on () (hour() > 8)",) * 2],
    ids=["number", "fraction", "promql"],
)
def test_an_expected_throughput_becomes_the_series_that_its_alert_looks_at(chart, given, expr):
    rule = {"enabled": True, "expectedRequestsPerSecond": given}
    objects = helm.render(chart, Case("expected", "", {"monitoring": {"prometheusRule": rule}}))
    (group,) = named(objects, "PrometheusRule", "anabranch-expected")["spec"]["groups"]
    (recorded,) = group["rules"]
    assert recorded["expr"] == expr
    assert recorded["labels"].keys() == {"namespace"}
    alerts = (helm.CHART / "files/rules/anabranch.yaml").read_text(encoding="utf-8")
    assert recorded["record"] in alerts


def test_without_an_expectation_there_is_no_such_series(chart):
    names = [one["metadata"]["name"] for one in helm.render(chart, WATCHED)]
    assert "anabranch-expected" not in names
