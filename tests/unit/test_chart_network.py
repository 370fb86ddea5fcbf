"""The network policies let through exactly what the services need of each other and of others.

They are judged as Kubernetes does: what no policy selects is open, and several that select add up.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.chart import COMPONENT, changed, needs_helm, of_kind, pods, rendered, selects
from tests.support.chart import chart as chart
from tools.chart.helm import NAMESPACE, Case, Object, examples

pytestmark = needs_helm
PORTS = {"router": 50051, "engine": 50052, "cloud-proxy": 50053, "auth": 50054}
HTTP = {"router": 9101, "engine": 9102, "cloud-proxy": 9103, "auth": 9104}


@dataclass(frozen=True)
class Place:
    """Somebody in a namespace, or an address outside."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = NAMESPACE
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""

    def is_in(self, peer: Mapping[str, Any]) -> bool:
        if "ipBlock" in peer:
            if not self.address:
                return False
            address = ipaddress.ip_address(self.address)
            block = peer["ipBlock"]
            return address in ipaddress.ip_network(block["cidr"]) and not any(
                address in ipaddress.ip_network(net) for net in block.get("except", ())
            )
        if self.address:
            return False
        if "namespaceSelector" in peer:
            labels = {"kubernetes.io/metadata.name": self.namespace, **self.namespace_labels}
            if not selects(peer["namespaceSelector"].get("matchLabels", {}), labels):
                return False
        elif self.namespace != NAMESPACE:
            return False
        return selects(peer.get("podSelector", {}).get("matchLabels", {}), self.labels)


PROVIDER = Place(address="104.18.7.192")
NODE = Place(address="10.9.9.9")
METADATA = Place(address="169.254.169.254")
STRANGER = Place(namespace="shop", labels={"app": "shop"})
PROMETHEUS = Place(namespace="monitoring", labels={"app": "prometheus"})
DNS = Place(namespace="kube-system", labels={"k8s-app": "kube-dns"})


def passes(
    policies: Sequence[Object],
    direction: str,
    me: Mapping[str, str],
    other: Place,
    port: int,
    protocol: str = "TCP",
) -> bool:
    """Whether the policies of `me` let it through: `direction` is ingress or egress."""
    mine = [
        one["spec"]
        for one in policies
        if direction.capitalize() in one["spec"]["policyTypes"]
        and selects(one["spec"]["podSelector"]["matchLabels"], me)
    ]
    if not mine:
        return True
    whom = "from" if direction == "ingress" else "to"
    return any(
        any(one["port"] == port and one["protocol"] == protocol for one in rule["ports"])
        and (not rule.get(whom) or any(other.is_in(peer) for peer in rule[whom]))
        for spec in mine
        for rule in spec.get(direction, ())
    )


def connects(policies: Sequence[Object], me: Place, other: Place, port: int) -> bool:
    return passes(policies, "egress", me.labels, other, port) and passes(
        policies, "ingress", other.labels, me, port
    )


def parts(objects: Sequence[Object]) -> dict[str, Place]:
    return {labels[COMPONENT]: Place(labels) for _, labels, _ in pods(objects)}


@pytest.fixture
def policies(chart: Path) -> list[Object]:
    return of_kind(full(chart), "NetworkPolicy")


@pytest.fixture
def places(chart: Path) -> dict[str, Place]:
    return parts(full(chart))


def full(chart: Path) -> list[Object]:
    return rendered(chart, next(case for case in examples() if case.name == "one-gpu"))


def test_services_reach_each_other_where_they_must_and_nowhere_else(policies, places):
    ports = {*PORTS.values(), *HTTP.values(), 50060}
    edges = {
        (who, whom, port)
        for who, me in places.items()
        for whom, other in places.items()
        if who != whom
        for port in ports
        if connects(policies, me, other, port)
    }
    calls = {
        ("router", "engine", 50052),
        ("router", "cloud-proxy", 50053),
        *((who, "auth", 50054) for who in ("router", "engine", "cloud-proxy", "tester")),
        ("tester", "router", 50051),
    }
    assert edges == calls


def test_what_is_not_named_is_denied_to_every_pod(policies, places):
    for name, place in places.items():
        for direction in ("ingress", "egress"):
            assert not passes(policies, direction, place.labels, STRANGER, 22), name
            assert not passes(policies, direction, place.labels, METADATA, 80), name


def test_only_the_cloud_proxy_leaves_the_cluster(chart: Path, policies, places):
    outside = {n: passes(policies, "egress", p.labels, PROVIDER, 443) for n, p in places.items()}
    # The engine of this example downloads its model.
    assert {name for name, may in outside.items() if may} == {"cloud-proxy", "engine"}
    for place in places.values():
        for inside in (NODE, METADATA, Place(address="192.168.1.1"), STRANGER):
            assert not passes(policies, "egress", place.labels, inside, 443)
    objects = changed(chart, "one-gpu", engineDefaults={"download": False}, engines=POOLS[:1])
    policies = of_kind(objects, "NetworkPolicy")
    engine = parts(objects)["engine"]
    assert not passes(policies, "egress", engine.labels, PROVIDER, 443)


POOLS: list[dict[str, Any]] = [
    {"name": "quiet", "model": "/models/a"},
    {"name": "loading", "model": "org/b", "download": True},
]


def test_only_the_pool_that_downloads_its_model_may(chart: Path):
    objects = changed(chart, engines=POOLS)
    policies = of_kind(objects, "NetworkPolicy")
    may = {
        labels["anabranch.io/pool"]: passes(policies, "egress", labels, PROVIDER, 443)
        for _, labels, _ in pods(objects)
        if labels[COMPONENT] == "engine"
    }
    assert may == {"quiet": False, "loading": True}


def test_callers_reach_the_router_and_auth_alone(policies, places):
    for name, place in places.items():
        if name in PORTS:
            let_in = passes(policies, "ingress", place.labels, STRANGER, PORTS[name])
            assert let_in == (name in ("router", "auth"))


def test_callers_can_be_narrowed_to_namespaces_with_a_label(chart: Path):
    objects = changed(
        chart,
        networkPolicy__callers=[{"namespaceSelector": {"matchLabels": {"may-call": "yes"}}}],
    )
    policies, router = of_kind(objects, "NetworkPolicy"), parts(objects)["router"]
    assert not passes(policies, "ingress", router.labels, STRANGER, 50051)
    friend = Place(namespace="shop", namespace_labels={"may-call": "yes"})
    assert passes(policies, "ingress", router.labels, friend, 50051)


def test_prometheus_reads_metrics_and_nothing_else(policies, places):
    for name, place in places.items():
        if name in HTTP:
            assert passes(policies, "ingress", place.labels, PROMETHEUS, HTTP[name])
            assert not passes(policies, "ingress", place.labels, PROMETHEUS, 50052)
            if name != "auth":
                assert not passes(policies, "ingress", place.labels, STRANGER, HTTP[name])


def test_every_pod_may_ask_dns(policies, places):
    for place in places.values():
        for protocol in ("UDP", "TCP"):
            assert passes(policies, "egress", place.labels, DNS, 53, protocol)
            assert not passes(policies, "egress", place.labels, STRANGER, 53, protocol)


def test_consul_redis_and_postgresql_are_reached_by_those_that_use_them(chart: Path):
    case = next(case for case in examples() if case.name == "air-gapped")
    objects = rendered(chart, case)
    policies, places = of_kind(objects, "NetworkPolicy"), parts(objects)
    uses = {
        ("10.20.0.7", 8501): {"router", "engine", "auth"},
        ("10.20.1.7", 6379): {"router", "engine"},
        ("10.20.2.7", 5432): {"auth"},
    }
    for (address, port), users in uses.items():
        there, elsewhere = Place(address=address), Place(address="10.99.0.1")
        may = {n for n, p in places.items() if passes(policies, "egress", p.labels, there, port)}
        assert may == users
        for place in places.values():
            assert not passes(policies, "egress", place.labels, elsewhere, port)


def test_consuls_agents_may_ask_for_health(chart: Path):
    agents = {"consul-hashicorp": NODE, "air-gapped": Place(address="10.20.0.7")}
    changes = {"consul": {"mode": "hashicorp", "enabled": True}}
    for example, agent in agents.items():
        case = Case("x", "one-gpu", changes) if example.startswith("consul") else Case("x", example)
        objects = changed(chart, case.example, **case.changes)
        policies = of_kind(objects, "NetworkPolicy")
        for name, place in parts(objects).items():
            if name in PORTS:
                assert passes(policies, "ingress", place.labels, agent, 50060)
                assert not passes(policies, "ingress", place.labels, agent, 50052)


def test_without_consul_nobody_but_the_kubelet_asks_the_health_port(policies, places):
    for place in places.values():
        assert not passes(policies, "ingress", place.labels, STRANGER, 50060)


def test_the_collector_is_reached_where_there_is_one(chart: Path, policies, places):
    collector = Place(namespace="monitoring", labels={"app": "otel"})
    assert not passes(policies, "egress", places["router"].labels, collector, 4318)
    objects = rendered(chart, next(case for case in examples() if case.name == "gpu-cluster"))
    policies, places = of_kind(objects, "NetworkPolicy"), parts(objects)
    for name in PORTS:
        assert passes(policies, "egress", places[name].labels, collector, 4318)
        assert not passes(policies, "egress", places[name].labels, STRANGER, 4318)


def test_a_release_can_do_without(chart: Path):
    assert not of_kind(changed(chart, networkPolicy__enabled=False), "NetworkPolicy")
