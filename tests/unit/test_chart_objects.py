"""The objects of every example and mode fit together, and every pod is as careful as it can be."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.chart import (
    CASES,
    COMPONENT,
    changed,
    environment,
    named,
    needs_helm,
    of_kind,
    pods,
    refusal,
    rendered,
    selects,
    services_pods,
)
from tests.support.chart import chart as chart
from tools.chart import helm, validate
from tools.chart.helm import Case, Object

pytestmark = needs_helm
VERSION = yaml.safe_load((helm.CHART / "Chart.yaml").read_text(encoding="utf-8"))["appVersion"]
GPU_CLUSTER = next(case for case in CASES if case.name == "gpu-cluster")
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


# Every object


@EACH
def test_a_name_is_used_once_for_each_kind(chart: Path, case: Case):
    names = [(one["kind"], one["metadata"]["name"]) for one in rendered(chart, case)]
    assert len(names) == len(set(names))
    # One label of DNS: what Services and pods may be called.
    assert all(re.fullmatch(r"[a-z][a-z0-9-]{0,52}", name) for _, name in names)


@EACH
def test_every_object_says_whose_it_is(chart: Path, case: Case):
    for one in rendered(chart, case):
        if "stand-in" not in one["metadata"]["name"]:
            labels = one["metadata"]["labels"]
            assert labels["app.kubernetes.io/instance"] == "anabranch"
            assert labels["app.kubernetes.io/managed-by"] == "Helm"


@EACH
def test_selectors_find_the_pods_that_they_mean_and_no_others(chart: Path, case: Case):
    objects = rendered(chart, case)
    for one in of_kind(objects, "Deployment", "Service", "PodDisruptionBudget"):
        spec = one["spec"]
        selector = spec["selector"]
        selector = selector.get("matchLabels", selector)
        component = one["metadata"]["labels"][COMPONENT]
        found = [(n, labels) for n, labels, _ in pods(objects) if selects(selector, labels)]
        assert found, validate.name_of(one)
        assert {labels[COMPONENT] for _, labels in found} == {component}
        if one["kind"] == "Deployment":
            assert [name for name, _ in found] == [one["metadata"]["name"]]


@EACH
def test_every_port_of_a_service_is_one_of_its_pods(chart: Path, case: Case):
    objects = rendered(chart, case)
    for service in of_kind(objects, "Service"):
        for _, labels, spec in pods(objects):
            if not selects(service["spec"]["selector"], labels):
                continue
            ports = {p["name"]: p["containerPort"] for p in spec["containers"][0]["ports"]}
            for port in service["spec"]["ports"]:
                assert ports[port["targetPort"]] == port["port"]


@EACH
def test_ports_are_those_that_the_processes_listen_on(chart: Path, case: Case):
    for _, _, spec in services_pods(rendered(chart, case)):
        ports = {p["name"]: str(p["containerPort"]) for p in spec["containers"][0]["ports"]}
        environ = environment(spec)
        for name, setting in (("grpc", "_LISTEN"), ("http", "_HTTP_LISTEN"), ("health", "_HEALTH")):
            told = {
                value.rpartition(":")[2]
                for key, value in environ.items()
                if re.fullmatch(rf"ANABRANCH_[A-Z]+{setting}(_LISTEN)?", key)
            }
            assert told == {ports[name]}


@EACH
def test_what_a_pod_mounts_is_made_here_or_named_as_existing(chart: Path, case: Case):
    objects = rendered(chart, case)
    made = {(one["kind"], one["metadata"]["name"]) for one in objects}
    made |= {("Secret", one["spec"]["secretName"]) for one in of_kind(objects, "Certificate")}
    made |= {
        ("Secret", one["spec"]["target"]["name"]) for one in of_kind(objects, "ExternalSecret")
    }
    expected_to_exist = {
        "one-gpu": {"anabranch-provider-keys"},
        "air-gapped": {
            *("anabranch-consul", "internal-ca", "anabranch-redis", "anabranch-identities"),
            *("anabranch-postgresql", "anabranch-auth-keys", "models"),
            *(f"anabranch-{name}-tls" for name in ("router", "auth", "engine", "client")),
        },
    }.get(case.example, set())
    absent = {name for kind, name in _referred(objects) if (kind, name) not in made}
    assert absent == expected_to_exist


def _referred(objects: list[Object]) -> Iterator[tuple[str, str]]:
    for _, _, spec in pods(objects):
        for volume in spec["volumes"]:
            if "configMap" in volume:
                yield "ConfigMap", volume["configMap"]["name"]
            elif "secret" in volume:
                yield "Secret", volume["secret"]["secretName"]
            elif "persistentVolumeClaim" in volume:
                yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
            for source in volume.get("projected", {}).get("sources", ()):
                yield "Secret", source["secret"]["name"]
        for one in spec["containers"][0].get("env", ()):
            if "secretKeyRef" in one.get("valueFrom", {}):
                yield "Secret", one["valueFrom"]["secretKeyRef"]["name"]


@EACH
def test_keys_of_secrets_that_are_made_here_are_those_that_pods_ask_for(chart: Path, case: Case):
    objects = rendered(chart, case)
    made = {one["metadata"]["name"]: set(one["data"]) for one in of_kind(objects, "Secret")}
    asked = 0
    for _, _, spec in pods(objects):
        for volume in spec["volumes"]:
            sources = [
                source["secret"] for source in volume.get("projected", {}).get("sources", ())
            ]
            if "secret" in volume:
                sources.append({"name": volume["secret"]["secretName"], **volume["secret"]})
            for source in sources:
                if source["name"] in made:
                    asked += 1
                    assert {item["key"] for item in source["items"]} <= made[source["name"]]
    assert asked or not made


# Every pod


@EACH
def test_every_pod_keeps_to_the_restricted_standard_and_writes_no_root(chart: Path, case: Case):
    for name, _, spec in pods(rendered(chart, case)):
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec)
        allowed = {"name", "emptyDir", "projected", "secret", "configMap", "persistentVolumeClaim"}
        assert all(set(volume) <= allowed for volume in spec["volumes"])
        for container in spec["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert not any("hostPort" in port for port in container.get("ports", ()))


@EACH
def test_every_place_that_is_written_is_a_volume(chart: Path, case: Case):
    for _, labels, spec in services_pods(rendered(chart, case)):
        mounts = {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        assert {"/tmp", "/var/lib/anabranch"} <= mounts
        if labels[COMPONENT] == "engine":
            environ = environment(spec)
            assert "/dev/shm" in mounts
            for name in ("HF_HOME", "VLLM_CACHE_ROOT", "XDG_CACHE_HOME", "TRITON_CACHE_DIR"):
                assert environ[name].startswith("/var/cache/anabranch")


@EACH
def test_probes_ask_the_health_port_for_three_different_things(chart: Path, case: Case):
    for _, _, spec in services_pods(rendered(chart, case)):
        (container,) = spec["containers"]
        for probe, name in (
            ("startupProbe", "startup"),
            ("readinessProbe", "readiness"),
            ("livenessProbe", "liveness"),
        ):
            assert container[probe]["grpc"] == {"port": 50060, "service": name}


def test_a_model_may_take_its_time_to_load(chart: Path):
    objects = rendered(chart, GPU_CLUSTER)
    for deployment in of_kind(objects, "Deployment"):
        if deployment["metadata"]["labels"].get("anabranch.io/pool") == "deepseek":
            (container,) = deployment["spec"]["template"]["spec"]["containers"]
            probe = container["startupProbe"]
            assert probe["failureThreshold"] * probe["periodSeconds"] == 3600
            # Its GPUs may be those of a pod that still drains.
            drains = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            assert deployment["spec"]["progressDeadlineSeconds"] > 3600 + drains


@EACH
def test_a_process_that_does_not_live_is_killed_soon(chart: Path, case: Case):
    """Without a grace of its own a hung process would be waited for like one that drains."""
    for _, _, spec in services_pods(rendered(chart, case)):
        (container,) = spec["containers"]
        before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        for probe in ("startupProbe", "livenessProbe"):
            assert before < container[probe]["terminationGracePeriodSeconds"] <= before + 60
        # Kubernetes refuses one here.
        assert "terminationGracePeriodSeconds" not in container["readinessProbe"]


@EACH
def test_a_pod_is_killed_only_after_the_longest_generation(chart: Path, case: Case):
    for name, labels, spec in services_pods(rendered(chart, case)):
        environ = environment(spec)
        drain = next(float(v) for k, v in environ.items() if k.endswith("_DRAIN_TIMEOUT"))
        wait = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert spec["terminationGracePeriodSeconds"] > drain + wait, name
        if labels[COMPONENT] == "router":
            assert drain >= float(environ["ANABRANCH_ROUTER_DEFAULT_TIMEOUT"])
        if labels[COMPONENT] == "cloud-proxy":
            assert drain >= float(environ["ANABRANCH_CLOUD_TOTAL_TIMEOUT"])


def test_an_older_kubernetes_waits_with_a_command_before_it_ends_a_pod(chart: Path):
    from tools.chart.helm import render

    for _, _, spec in services_pods(render(chart, CASES[0], kube_version="1.28")):
        before = spec["containers"][0]["lifecycle"]["preStop"]
        assert before["exec"]["command"][0] == "sleep"


def test_a_grace_that_is_shorter_than_the_drain_is_refused(chart: Path):
    said = refusal(chart, router__terminationGracePeriodSeconds=300)
    assert "router: terminationGracePeriodSeconds must be more than" in said


def test_a_digest_goes_before_a_tag(chart: Path):
    objects = changed(
        chart,
        image__registry="registry.example.org/team",
        router__image={"tag": "1.2", "digest": "sha256:" + "a" * 64},
        auth__image={"tag": "1.3"},
    )
    images = {
        labels[COMPONENT]: spec["containers"][0]["image"] for _, labels, spec in pods(objects)
    }
    pinned = f"registry.example.org/team/anabranch/router@sha256:{'a' * 64}"
    assert images["router"] == images["tester"] == pinned
    assert images["auth"] == "registry.example.org/team/anabranch/auth:1.3"


def test_a_release_brings_every_image_along(chart: Path):
    """A tag that no version changes would leave engines of an old one beside a new router."""
    for objects, version in (
        (rendered(chart, CASES[1]), VERSION),
        (changed(chart, "one-gpu", image__tag="9.9"), "9.9"),
    ):
        for _, labels, spec in pods(objects):
            tag = spec["containers"][0]["image"].rpartition(":")[2]
            assert tag == (f"{version}-gpu" if labels[COMPONENT] == "engine" else version)
    objects = changed(chart, "one-gpu", engineDefaults__image={"tag": "mine"})
    (image,) = [
        spec["containers"][0]["image"]
        for _, labels, spec in pods(objects)
        if labels[COMPONENT] == "engine"
    ]
    assert image == "registry.example.org/anabranch/engine:mine"


def test_callers_from_outside_find_auth_and_the_router(chart: Path):
    """Whoever has a client's secret logs in at auth first: the router alone would not do."""
    for name in ("router", "auth"):
        service = named(rendered(chart, GPU_CLUSTER), "Service", f"anabranch-{name}")["spec"]
        assert service["type"] == "LoadBalancer"
        assert service["loadBalancerSourceRanges"] == ["10.0.0.0/8"]
        assert service["externalTrafficPolicy"] == "Local"
        service = named(rendered(chart, CASES[0]), "Service", f"anabranch-{name}")["spec"]
        assert service["type"] == "ClusterIP"


def test_consuls_agents_are_on_every_node_that_pods_may_use(chart: Path):
    """A pod registers with the agent of its node, and a DaemonSet leaves tainted nodes out."""
    objects = rendered(chart, GPU_CLUSTER)
    stand_in = named(objects, "ConfigMap", helm.STAND_IN)
    agents = yaml.safe_load(json.loads(stand_in["data"]["values.json"])["client"]["tolerations"])
    tolerated = [
        one for _, _, spec in services_pods(objects) for one in spec.get("tolerations", ())
    ]
    assert tolerated
    assert all(one in agents for one in tolerated)


def test_an_upgrade_of_the_chart_alone_starts_no_pod_anew(chart: Path):
    """A label with the chart's version in a pod would load every model again."""
    for _, labels, _ in services_pods(rendered(chart, CASES[2])):
        assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(labels)


def test_changed_models_start_the_cloud_proxy_anew_and_a_changed_policy_nothing(chart: Path):
    before = {n: spec for n, _, spec in services_pods(rendered(chart, CASES[1]))}
    changes: dict[str, Any] = {"policy": {"version": 1}}
    after = {n: spec for n, _, spec in services_pods(changed(chart, "one-gpu", **changes))}
    assert before == after
    model = {"name": "m", "provider": "deepseek", "model": "x"}
    annotations = [
        next(one for one in of_kind(objects, "Deployment") if "cloud" in one["metadata"]["name"])[
            "spec"
        ]["template"]["metadata"]["annotations"]["checksum/models"]
        for objects in (
            rendered(chart, CASES[1]),
            changed(chart, "one-gpu", cloudProxy__models=[model]),
        )
    ]
    assert annotations[0] != annotations[1]


# Replicas


@EACH
def test_replicas_belong_to_one_that_says_how_many(chart: Path, case: Case):
    objects = rendered(chart, case)
    scaled = {
        one["spec"]["scaleTargetRef"]["name"]: one
        for one in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject")
    }
    for deployment in of_kind(objects, "Deployment"):
        name = deployment["metadata"]["name"]
        assert ("replicas" in deployment["spec"]) != (name in scaled)
    names = {one["metadata"]["name"] for one in of_kind(objects, "Deployment")}
    assert set(scaled) <= names


def test_stateless_services_scale_from_two_to_ten_at_seventy_percent_of_their_cpu(chart: Path):
    objects = changed(
        chart,
        "one-gpu",
        auth__database={"type": "postgresql", "existingSecret": {"name": "pg", "key": "url"}},
        router__autoscaling={"enabled": True},
        cloudProxy__autoscaling={"enabled": True},
    )
    found = {
        one["metadata"]["name"]: one["spec"] for one in of_kind(objects, "HorizontalPodAutoscaler")
    }
    assert set(found) == {"anabranch-router", "anabranch-cloud-proxy", "anabranch-auth"}
    for spec in found.values():
        assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 10)
        (metric,) = spec["metrics"]
        assert metric["resource"]["target"]["averageUtilization"] == 70


@EACH
def test_an_eviction_leaves_every_service_somebody_and_never_waits_for_ever(
    chart: Path, case: Case
):
    objects = rendered(chart, case)
    budgets = of_kind(objects, "PodDisruptionBudget")
    assert len(budgets) == len(of_kind(objects, "Deployment"))
    for budget in budgets:
        # A minimum of one would hold up a node for ever where there is one replica.
        assert budget["spec"]["maxUnavailable"] == 1
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@EACH
def test_pods_are_replaced_before_they_go_unless_there_is_no_room(chart: Path, case: Case):
    for one in of_kind(rendered(chart, case), "Deployment"):
        strategy = one["spec"]["strategy"]
        if strategy["type"] == "Recreate":
            assert one["metadata"]["name"] == "anabranch-auth"
            assert one["spec"]["replicas"] == 1
        elif one["metadata"]["labels"].get("anabranch.io/pool") not in ("qwen", "deepseek"):
            assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_replicas_are_spread_and_come_in_order_of_priority(chart: Path):
    objects = rendered(chart, GPU_CLUSTER)
    classes = {one["metadata"]["name"]: one["value"] for one in of_kind(objects, "PriorityClass")}
    # With the namespace: another release of the same name may be in another one.
    serving, engines = "anabranch-anabranch-serving", "anabranch-anabranch-engines"
    assert classes == {serving: 100000, engines: 90000}
    for _, labels, spec in services_pods(objects):
        wanted = engines if labels[COMPONENT] == "engine" else serving
        assert spec["priorityClassName"] == wanted
        for constraint in spec["topologySpreadConstraints"]:
            assert selects(constraint["labelSelector"]["matchLabels"], labels)


def test_pods_that_must_be_even_are_never_held_up_by_nodes_or_pods_that_do_not_count(chart: Path):
    """A tainted node would be one without a pod, and an old revision's pods fill the others."""
    spread = {"hosts": "DoNotSchedule", "zones": "DoNotSchedule"}
    for _, _, spec in services_pods(changed(chart, "one-gpu", topologySpread=spread)):
        for constraint in spec["topologySpreadConstraints"]:
            assert constraint["whenUnsatisfiable"] == "DoNotSchedule"
            assert constraint["nodeTaintsPolicy"] == "Honor"
            assert constraint["matchLabelKeys"] == ["pod-template-hash"]


def test_the_registrys_names_are_asked_for_as_they_are(chart: Path):
    for _, labels, spec in services_pods(rendered(chart, CASES[1])):
        prefix = next(k for k in environment(spec) if k.endswith("_REGISTRY"))
        hosts = re.findall(r"=([^:;]+):\d+", environment(spec)[prefix])
        assert len(hosts) == 4, labels
        (ndots,) = [int(o["value"]) for o in spec["dnsConfig"]["options"] if o["name"] == "ndots"]
        assert all(host.count(".") >= ndots for host in hosts)


# Secrets


@EACH
def test_no_secret_is_in_a_configmap_an_argument_or_a_plain_variable(chart: Path, case: Case):
    objects = rendered(chart, case)
    secrets = [
        base64.b64decode(text).decode()
        for one in of_kind(objects, "Secret")
        for text in one["data"].values()
    ]
    others = str([one for one in objects if one["kind"] != "Secret"])
    assert not [secret for secret in secrets if secret in others]
    for _, _, spec in services_pods(objects):
        for name in environment(spec):
            assert not re.search(
                r"_(SECRET|TOKEN|PASSWORD|API_KEYS|REDIS_URL|DATABASE_URL)$", name
            ) or (name == "HF_TOKEN")


def test_made_secrets_are_strong_different_and_kept(chart: Path):
    made = of_kind(rendered(chart, CASES[0]), "Secret")
    texts = [base64.b64decode(text) for one in made for text in one["data"].values()]
    assert len(texts) == len(set(texts)) == 4
    assert all(len(text) == 48 for text in texts)
    for one in made:
        assert one["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_the_router_sees_no_secret_of_the_administrator(chart: Path):
    for _, labels, spec in pods(rendered(chart, CASES[0])):
        names = {
            item["path"]
            for volume in spec["volumes"]
            for source in volume.get("projected", {}).get("sources", ())
            for item in source["secret"]["items"]
        }
        if labels[COMPONENT] == "router":
            assert names == {"router"}
        if labels[COMPONENT] == "tester":
            assert names == {"tester"}
        assert "anabranch-identities" not in str(spec["volumes"]) or labels[COMPONENT] != "engine"


def test_sqlite_keeps_one_replica_on_a_claim_and_postgresql_needs_neither(chart: Path):
    objects = rendered(chart, CASES[0])
    assert [one["metadata"]["name"] for one in of_kind(objects, "PersistentVolumeClaim")] == [
        "anabranch-auth"
    ]
    database = {"type": "postgresql", "existingSecret": {"name": "pg", "key": "url"}}
    objects = changed(chart, auth__database=database)
    assert not of_kind(objects, "PersistentVolumeClaim")
