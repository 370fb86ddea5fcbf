"""The chart, rendered by the real helm once for each set of values, and ways to look at it."""

from __future__ import annotations

import base64
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from services.auth.settings import Settings as AuthSettings
from services.chassis.settings import load
from services.cloud_proxy.settings import Settings as CloudSettings
from services.local_engine.settings import Settings as EngineSettings
from services.router.settings import Settings as RouterSettings
from tools.chart import helm
from tools.chart.helm import Case, Object

needs_helm = pytest.mark.skipif(
    helm.helm_binary() is None, reason="there is no helm: `make helm` fetches it"
)

EXAMPLES = helm.examples()
CASES = (*helm.MODES, *EXAMPLES)
SETTINGS: dict[str, tuple[str, Any]] = {
    "router": ("ANABRANCH_ROUTER_", RouterSettings),
    "cloud-proxy": ("ANABRANCH_CLOUD_", CloudSettings),
    "auth": ("ANABRANCH_AUTH_", AuthSettings),
    "engine": ("ANABRANCH_ENGINE_", EngineSettings),
}
COMPONENT = "app.kubernetes.io/component"


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the chart that helm renders without HashiCorp's."""
    return helm.copy_with_stand_in(tmp_path_factory.mktemp("chart") / "anabranch")


def rendered(chart: Path, case: Case) -> list[Object]:
    """The objects of a case; the same list for every test, so nobody changes it."""
    return _rendered(chart, case.name)


@cache
def _rendered(chart: Path, name: str) -> list[Object]:
    return helm.render(chart, next(case for case in CASES if case.name == name))


def changed(chart: Path, example: str = "", **changes: Any) -> list[Object]:
    """The objects with further values; a double underscore stands for a dot."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return helm.render(chart, Case("changed", example, dotted))


def refusal(chart: Path, example: str = "", **changes: Any) -> str:
    """What helm says when it does not take the values."""
    with pytest.raises(helm.HelmError) as refused:
        changed(chart, example, **changes)
    return str(refused.value)


def of_kind(objects: Sequence[Object], *kinds: str) -> list[Object]:
    return [one for one in objects if one["kind"] in kinds]


def named(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The one object of this kind and name."""
    (found,) = [one for one in of_kind(objects, kind) if one["metadata"]["name"] == name]
    return found


def pods(objects: Sequence[Object]) -> Iterator[tuple[str, dict[str, str], dict[str, Any]]]:
    """Name, labels and spec of every pod that would be."""
    for one in objects:
        if one["kind"] == "Pod":
            yield one["metadata"]["name"], one["metadata"]["labels"], one["spec"]
        elif one["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            template = one["spec"]["template"]
            yield one["metadata"]["name"], template["metadata"]["labels"], template["spec"]


def services_pods(
    objects: Sequence[Object],
) -> Iterator[tuple[str, dict[str, str], dict[str, Any]]]:
    """As `pods`, without that of `helm test`."""
    return ((n, labels, spec) for n, labels, spec in pods(objects) if labels[COMPONENT] in SETTINGS)


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


def environment(spec: Mapping[str, Any]) -> dict[str, str]:
    """The variables of a pod's container, with $(NAME) filled in as the kubelet does."""
    facts = {"status.podIP": "10.1.2.3", "metadata.name": "pod-1", "status.hostIP": "10.9.9.9"}
    found: dict[str, str] = {}
    (container,) = spec["containers"]
    for one in container["env"]:
        source = one.get("valueFrom", {})
        if "fieldRef" in source:
            text = facts[source["fieldRef"]["fieldPath"]]
        elif "secretKeyRef" in source:
            text = "from-a-secret"
        else:
            text = one["value"]
        found[one["name"]] = re.sub(r"\$\((\w+)\)", lambda m: found.get(m[1], m[0]), text)
    return found


SAMPLES = {
    "redis-url": "redis://:secret@redis:6379/0",
    "database-url": "postgresql://user:secret@database/anabranch",
    "key-encryption-secret": "k" * 40,
    "consul-token": "t" * 36,
}
"""Contents for mounted Secrets, by the file's name."""


def mount(objects: Sequence[Object], spec: Mapping[str, Any], root: Path) -> None:
    """Puts what the pod mounts below `root`, as the kubelet would: what the chart makes as it is
    rendered, other Secrets with samples."""
    (container,) = spec["containers"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for one in container["volumeMounts"]:
        volume = volumes[one["name"]]
        folder = root / one["mountPath"].lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in _contents(objects, volume):
            (folder / name).write_text(text, encoding="utf-8")


def _contents(objects: Sequence[Object], volume: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "configMap" in volume:
        found = named(objects, "ConfigMap", volume["configMap"]["name"])
        yield from found["data"].items()
    elif "projected" in volume:
        for source in volume["projected"]["sources"]:
            yield from _secret(objects, source["secret"]["name"], source["secret"]["items"])
    elif volume["name"] == "provider-keys":
        yield from (("deepseek", "sk-sample"), ("openai", "sk-sample"))
    elif "secret" in volume:
        files = ("tls.crt", "tls.key", "ca.crt")
        items = volume["secret"].get("items") or [{"key": name, "path": name} for name in files]
        yield from _secret(objects, volume["secret"]["secretName"], items)


def _secret(
    objects: Sequence[Object], name: str, items: Sequence[Mapping[str, str]]
) -> Iterator[tuple[str, str]]:
    made = [one for one in of_kind(objects, "Secret") if one["metadata"]["name"] == name]
    for item in items:
        if made:
            yield item["path"], base64.b64decode(made[0]["data"][item["key"]]).decode()
        else:
            yield item["path"], SAMPLES.get(item["path"], "s" * 43)


def settings_of(
    objects: Sequence[Object], labels: Mapping[str, str], spec: Mapping[str, Any], root: Path
) -> Any:
    """The Settings that the service would make of its pod. Raises SettingsError."""
    mount(objects, spec, root)
    prefix, kind = SETTINGS[labels[COMPONENT]]
    environ = {
        name: f"{root}{text}" if re.fullmatch(r"/(etc|var)/.*", text) else text
        for name, text in environment(spec).items()
    }
    policy = environ.get(f"{prefix}POLICY", "")
    if policy.startswith("file:"):
        environ[f"{prefix}POLICY"] = f"file:{root}{policy.removeprefix('file:')}"
    return load(kind, prefix, environ)


def program(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command's end, within a minute."""
    return subprocess.run(
        arguments, cwd=cwd, check=False, capture_output=True, text=True, timeout=60
    )
