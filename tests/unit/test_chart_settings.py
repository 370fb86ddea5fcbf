"""What the chart tells each service is something that the service can be told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from services.chassis.registry import open_registry
from tests.support.chart import (
    CASES,
    COMPONENT,
    EXAMPLES,
    SETTINGS,
    changed,
    environment,
    needs_helm,
    of_kind,
    program,
    rendered,
    services_pods,
    settings_of,
)
from tests.support.chart import chart as chart
from tools.chart.helm import ROOT, STAND_IN, Case

pytestmark = needs_helm
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@EACH
def test_every_service_loads_the_settings_that_its_pod_has(chart: Path, case: Case, tmp_path: Path):
    objects = rendered(chart, case)
    loaded = {}
    for name, labels, spec in services_pods(objects):
        loaded[name] = settings_of(objects, labels, spec, tmp_path / name)
    assert "anabranch-router" in loaded
    assert "anabranch-auth" in loaded
    for settings in loaded.values():
        assert settings.health_listen == "0.0.0.0:50060"
        assert settings.advertise.startswith("10.1.2.3:")


@EACH
def test_no_variable_is_given_twice_and_none_of_ours_is_unknown(chart: Path, case: Case):
    for _, labels, spec in services_pods(rendered(chart, case)):
        (container,) = spec["containers"]
        names = [one["name"] for one in container["env"]]
        assert len(names) == len(set(names))
        prefix = SETTINGS[labels[COMPONENT]][0]
        assert {n for n in names if n.startswith("ANABRANCH_")} == {
            n for n in names if n.startswith(prefix)
        }


def test_whole_numbers_stay_whole_however_large(chart: Path, tmp_path: Path):
    objects = changed(
        chart,
        "one-gpu",
        router__settings={"MAX_WAITING": 12_000_000},
        policy={"version": 1, "admission": {"max_waiting": 3_000_000}},
    )
    (found,) = [one for one in services_pods(objects) if one[1][COMPONENT] == "router"]
    settings = settings_of(objects, found[1], found[2], tmp_path)
    assert settings.max_waiting == 12_000_000
    policy = Path(settings.policy.removeprefix("file:"))
    assert json.loads(policy.read_text())["admission"]["max_waiting"] == 3_000_000


@pytest.mark.slow
@pytest.mark.parametrize("case", EXAMPLES, ids=lambda case: case.name)
def test_the_router_finds_no_fault_in_an_examples_policy(chart: Path, case: Case, tmp_path: Path):
    objects = rendered(chart, case)
    for _, labels, spec in services_pods(objects):
        if labels[COMPONENT] != "router":
            continue
        policy = settings_of(objects, labels, spec, tmp_path).policy
        if policy == "none":
            assert case.name == "laptop-cpu"
            return
        checked = program(
            *(sys.executable, "-m", "services.router", "--check-policy"),
            policy.removeprefix("file:"),
            cwd=ROOT,
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.slow
def test_a_policy_with_a_fault_is_found_before_anything_is_installed(chart: Path, tmp_path: Path):
    objects = changed(chart, policy={"version": 1, "algoritm": "predicted"})
    (found,) = [one for one in services_pods(objects) if one[1][COMPONENT] == "router"]
    policy = settings_of(objects, found[1], found[2], tmp_path).policy.removeprefix("file:")
    checked = program(sys.executable, "-m", "services.router", "--check-policy", policy, cwd=ROOT)
    assert checked.returncode != 0
    assert "algoritm" in checked.stdout + checked.stderr


def test_settings_go_before_the_charts_own(chart: Path):
    objects = changed(chart, auth__settings={"TOKEN_LIFE": 120, "LOG_LEVEL": "debug"})
    (found,) = [one for one in services_pods(objects) if one[1][COMPONENT] == "auth"]
    environ = environment(found[2])
    assert environ["ANABRANCH_AUTH_LOG_LEVEL"] == "debug"
    assert environ["ANABRANCH_AUTH_TOKEN_LIFE"] == "120"


def test_a_pools_parallelism_and_vllms_arguments_arrive(chart: Path, tmp_path: Path):
    objects = rendered(chart, next(case for case in EXAMPLES if case.name == "gpu-cluster"))
    pools = {
        labels["anabranch.io/pool"]: (settings_of(objects, labels, spec, tmp_path / name), spec)
        for name, labels, spec in services_pods(objects)
        if labels[COMPONENT] == "engine"
    }
    assert set(pools) == {"llama-70b", "deepseek", "qwen-7b", "batch"}
    settings, spec = pools["deepseek"]
    assert (settings.tensor_parallel_size, settings.pipeline_parallel_size) == (4, 2)
    assert json.loads(settings.vllm_args) == {"enable_expert_parallel": True}
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 8
    settings, spec = pools["llama-70b"]
    assert settings.tensor_parallel_size == 4
    assert settings.quantization == "fp8"
    assert settings.tuning.kv_cache_dtype == "fp8"
    assert settings.tuning.tokens_per_decode == 4
    assert (settings.cpu_offload_gib, settings.data_parallel_size) == (0, 1)
    assert settings.names == ("llama-3.3-70b-instruct", "chat")
    shm = next(volume for volume in spec["volumes"] if volume["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}


# How processes find each other


def registries(chart: Path, name: str) -> set[str]:
    case = next(case for case in CASES if case.name == name)
    return {
        environment(spec)[f"{SETTINGS[labels[COMPONENT]][0]}REGISTRY"]
        for _, labels, spec in services_pods(rendered(chart, case))
    }


def test_without_consul_the_headless_services_are_asked_through_dns(chart: Path):
    (registry,) = registries(chart, "consul-none")
    kind, _, entries = registry.partition(":")
    assert kind == "dns"
    services = {
        one["metadata"]["name"]: one
        for one in of_kind(rendered(chart, CASES[1]), "Service")
        if one["spec"].get("clusterIP") == "None"
    }
    found = dict(entry.split("=") for entry in entries.split(";"))
    asked = ("auth", "engine", "cloud", "router")
    assert set(found) == {f"anabranch-{service}" for service in asked}
    for address in found.values():
        host, port = address.split(":")
        service = services[host.partition(".")[0]]
        assert host.endswith(".anabranch.svc.cluster.local")
        assert int(port) in [one["port"] for one in service["spec"]["ports"]]


async def test_an_existing_consul_is_the_agent_of_the_node_or_an_address(chart: Path):
    (registry,) = registries(chart, "consul-existing")
    assert registry == "consul://10.9.9.9:8500"
    (registry,) = registries(chart, "consul-enterprise")
    assert registry == "consul://10.9.9.9:8500?ns=llm&partition=eu"
    await open_registry(registry).close()
    (registry,) = registries(chart, "air-gapped")
    assert registry == (
        "consul://consul.internal.example:8501?dc=site-1&tls=true&ca=/etc/anabranch/consul-ca/ca.crt"
    )
    await open_registry("consul://consul.internal.example:8501?dc=site-1&tls=false").close()


def test_hashicorps_chart_is_given_agents_and_the_datacentre_that_services_ask(chart: Path):
    (registry,) = registries(chart, "consul-hashicorp")
    assert registry == "consul://10.9.9.9:8500?dc=dc1"
    case = next(case for case in CASES if case.name == "consul-hashicorp")
    (stand_in,) = [
        one for one in rendered(chart, case) if one["metadata"]["name"].startswith(STAND_IN)
    ]
    values = json.loads(stand_in["data"]["values.json"])
    assert values["client"]["enabled"] is True
    assert values["connectInject"]["enabled"] is False
    assert values["global"]["datacenter"] == "dc1"
    assert values["server"]["replicas"] == 3


@pytest.mark.parametrize("name", ["defaults", "consul-none", "consul-existing", "air-gapped"])
def test_in_the_other_modes_nothing_of_hashicorps_chart_is_installed(chart: Path, name: str):
    case = next(case for case in CASES if case.name == name)
    found = [one["metadata"]["name"] for one in rendered(chart, case)]
    assert not any(name.startswith(STAND_IN) for name in found)
