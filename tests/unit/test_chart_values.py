"""Values: what helm refuses and in what words, and that each key is described and documented."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.chart import CASES, changed, needs_helm, refusal
from tests.support.chart import chart as chart
from tools.chart import helm, reference, validate
from tools.chart.helm import CHART, ROOT, Case

SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
VALUES = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
ONE_NODE = {"enabled": True, "accessModes": ["ReadWriteOnce"]}
NO_SURGE = {"maxSurge": 0, "maxUnavailable": 1}


# What helm refuses


@needs_helm
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"routr": {}}, "additional properties 'routr' not allowed"),
        ({"router__replica": 3}, "at '/router': additional properties 'replica' not allowed"),
        ({"router__workers": "four"}, "at '/router/workers': got string, want integer"),
        ({"router__workers": 0}, "at '/router/workers': minimum: got 0, want 1"),
        ({"logLevel": "loud"}, "at '/logLevel': value must be one of"),
        ({"consul__mode": "etcd"}, "at '/consul/mode': value must be one of"),
        ({"tls__mode": True}, "at '/tls/mode'"),
        ({"auth__image": {"digest": "latest"}}, "at '/auth/image/digest'"),
        ({"engines": [{"name": "a"}]}, "at '/engines/0': missing property 'model'"),
        ({"engines": [{"name": "A_b", "model": "m"}]}, "at '/engines/0/name'"),
        (
            {"engines": [{"name": "a", "model": "m", "gpu": 1}]},
            "at '/engines/0': additional properties 'gpu' not allowed",
        ),
        ({"engines": [{"name": "a", "model": "m", "gpus": "2"}]}, "at '/engines/0/gpus'"),
        ({"engineDefaults__sharedMemory": "8 GB"}, "at '/engineDefaults/sharedMemory'"),
        ({"cloudProxy__models": [{"name": "a"}]}, "missing properties 'provider', 'model'"),
        ({"router__settings": {"max_waiting": 1}}, "invalid propertyName 'max_waiting'"),
        ({"networkPolicy__callers": [{}]}, "at '/networkPolicy/callers/0'"),
    ],
)
def test_the_schema_refuses_by_name(chart: Path, changes: dict[str, Any], said: str):
    assert said in refusal(chart, **changes)


@needs_helm
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"consul": {"mode": "hashicorp"}}, "consul.enabled must be true"),
        ({"consul": {"enabled": True}}, "and false otherwise"),
        (
            {"consul": {"mode": "hashicorp", "enabled": True, "client": {"enabled": False}}},
            "register with the agent of their node",
        ),
        ({"router__policyFrom": {"consulKey": "anabranch/policy"}}, "consul.mode is none"),
        (
            {"policy": {"version": 1}, "router__policyFrom": {"configMap": "mine"}},
            "the policy is in more than one place",
        ),
        (
            {"redis": {"url": "redis://a", "existingSecret": {"name": "b"}}},
            "redis.url and redis.existingSecret are both set",
        ),
        ({"redis__url": "rediss://:secret@cache:6380/0"}, "networkPolicy.redis.port is 6379, and"),
        ({"otlp__endpoint": "http://collector"}, "the address of otlp has port 80"),
        ({"auth__database": {"type": "postgresql"}}, "auth.database.existingSecret.name"),
        ({"tls": {"mode": "existing"}}, "tls.existingSecrets.auth is required"),
        ({"cloudProxy": {"enabled": True}}, "cloudProxy.models is empty"),
        ({"externalSecrets": {"enabled": True}}, "secretStoreRef.name is required"),
        (
            {"monitoring": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}},
            "scraped twice",
        ),
        ({"router__grpcRoute": {"enabled": True}}, "router.grpcRoute.parentRefs is empty"),
        ({"router__autoscaling": {"minReplicas": 11}}, "minReplicas exceeds maxReplicas"),
        (
            {"engines": [{"name": "a", "model": "m", "gpus": 4, "tensorParallel": 3}]},
            "tensorParallel × pipelineParallel × dataParallel is 3, and gpus is 4",
        ),
        (
            {"engines": [{"name": "a", "model": "m", "gpus": 4, "dataParallel": 3}]},
            "gpus is no multiple of pipelineParallel × dataParallel",
        ),
        ({"engines": [{"name": "a", "model": "m"}] * 2}, "engines[1] (a): the name is taken"),
        *(
            (
                {"engines": [{"name": "a", "model": "m", "cache": ONE_NODE, **pool}]},
                "engines[0] (a): cache.accessModes has no ReadWriteMany",
            )
            for pool in ({}, {"replicas": 2, "rollingUpdate": NO_SURGE})
        ),
        (
            {"engines": [{"name": "a", "model": "m", "keda": {"enabled": True}}]},
            "keda.enabled needs keda.prometheusAddress",
        ),
        (
            {"router__extraEnv": [{"name": "ANABRANCH_ROUTER_LISTEN", "value": "x"}]},
            "extraEnv names ANABRANCH_ROUTER_LISTEN, which the chart sets",
        ),
    ],
)
def test_values_that_do_not_fit_together_are_refused_with_the_reason(
    chart: Path, changes: dict[str, Any], said: str
):
    assert said in refusal(chart, **changes)


@needs_helm
def test_every_reason_is_named_at_once(chart: Path):
    said = refusal(chart, consul={"enabled": True}, cloudProxy={"enabled": True})
    assert len(re.findall(r"^  - ", said, re.MULTILINE)) == 3


@needs_helm
def test_a_chart_without_its_dependency_says_what_to_run(tmp_path: Path):
    with pytest.raises(helm.HelmError, match="helm dependency build"):
        helm.render(CHART, CASES[0])


# What Kubernetes would refuse


@needs_helm
def test_the_validation_finds_a_field_that_kubernetes_does_not_know(chart: Path):
    objects = changed(chart, router__affinity={"nodeAffinty": {}})
    (fault,) = validate.faults(objects, "1.35")
    assert "Deployment/anabranch-router" in fault
    assert "nodeAffinty" in fault


@needs_helm
@pytest.mark.parametrize("version", [validate.VERSIONS[0], validate.VERSIONS[-1]])
def test_the_oldest_and_the_newest_kubernetes_take_every_object(chart: Path, version: str):
    for case in (CASES[0], next(case for case in CASES if case.name == "gpu-cluster")):
        objects = helm.render(chart, case, kube_version=version)
        assert not list(validate.faults(objects, version))


def test_an_object_of_an_operator_must_be_on_the_list():
    stranger = {"apiVersion": "example.org/v1", "kind": "Wish", "metadata": {"name": "w"}}
    (fault,) = validate.faults([stranger], "1.35")
    assert "has no example.org/v1" in fault


# Descriptions


def walk(schema: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, value in schema.get("properties", {}).items():
        yield f"{at}.{key}".lstrip("."), value
        yield from walk(value, f"{at}.{key}")


def leaves(values: Mapping[str, Any], at: str = "") -> Iterator[str]:
    for key, value in values.items():
        path = f"{at}.{key}".lstrip(".")
        yield path
        if isinstance(value, dict):
            yield from leaves(value, path)


def test_every_key_of_the_schema_is_described_and_closed():
    for path, schema in walk(SCHEMA):
        assert schema.get("description", "").strip(), path
        if "properties" in schema and not path.startswith(("consul.", "cloudProxy.models")):
            assert schema["additionalProperties"] is False, path


def test_every_key_of_the_schema_has_a_default_and_every_default_a_description():
    described = {path for path, _ in walk(SCHEMA)}
    hashicorps = {path for path in described if re.match(r"consul\.[a-zA-Z]+$", path)}
    given = set(leaves(VALUES))
    open_maps = ("consul.", "policy.", "commonLabels.", "monitoring.dashboards.labels.")
    open_maps += tuple(f"{one}.resources." for one in ("router", "cloudProxy", "auth"))
    open_maps += ("engineDefaults.resources.", "networkPolicy.")
    assert {p for p in given - described if not p.startswith(open_maps)} == set()
    without = described - given - hashicorps
    assert {p for p in without if not p.endswith(".resources.claims")} == {"global"}


def test_the_page_of_values_is_what_the_schema_says():
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), (
        "run `python -m tools.chart docs`"
    )


def test_every_key_of_values_is_on_the_page():
    text = reference.page()
    for key, value in VALUES.items():
        heading = isinstance(value, dict) and "properties" in SCHEMA["properties"][key]
        assert (f"## `{key}`" if heading else f"| `{key}` |") in text
    for key in SCHEMA["properties"]["engines"]["items"]["properties"]:
        assert key in ("name", "model") or f"`{key}" in text


def test_the_chart_installs_the_version_that_it_comes_with():
    about = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert about["appVersion"] == re.search(r'^version = "(.*)"', project, re.MULTILINE)[1]
    assert about["kubeVersion"].startswith(f">={validate.VERSIONS[0]}.")


# What is said in the end


@needs_helm
@pytest.mark.parametrize(
    ("case", "lines"),
    [
        (
            Case("defaults"),
            ["no Consul is used", "PLAIN TEXT", "SQLite", "There are no engines", "helm test"],
        ),
        (Case("x", "gpu-cluster"), ["HashiCorp's Consul in this release", "ca.crt", "Grafana"]),
        (Case("x", "air-gapped"), ["the Consul at consul.internal.example, port 8501", "ca.crt"]),
        (
            Case("x", "", {"engines": [{"name": "a", "model": "org/m"}]}),
            ["Pool a may not download org/m"],
        ),
        (
            Case("x", "one-gpu", {"router.service": {"type": "LoadBalancer"}}),
            ["anabranch-router is a LoadBalancer, but networkPolicy.callers has no ipBlock"],
        ),
    ],
    ids=["defaults", "gpu-cluster", "air-gapped", "no-download", "closed-to-outside"],
)
def test_the_notes_say_how_it_was_installed_and_what_to_run_next(
    chart: Path, case: Case, lines: list[str]
):
    said = helm.notes(chart, case)
    for line in [*lines, "port-forward service/anabranch-router 50051", "anabranch models"]:
        assert line in said
    assert ("There are no engines" in said) == (case.name == "defaults")
