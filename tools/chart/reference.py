"""Makes the page of the chart's values from values.schema.json and values.yaml. It runs no helm."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from tools.chart.helm import CHART, ROOT

PAGE = ROOT / "docs/install/values.md"
# What several keys have in common is listed once.
_SHARED = frozenset(
    {
        *("settings", "drainTimeout", "preStopSeconds", "terminationGracePeriodSeconds"),
        *("rollingUpdate", "podDisruptionBudget", "priorityClassName", "nodeSelector"),
        *("tolerations", "affinity", "podAnnotations", "podLabels", "extraEnv", "extraVolumes"),
        *("extraVolumeMounts", "image", "resources", "autoscaling", "replicas"),
    }
)
_SERVICES = ("router", "cloudProxy", "auth")

_HEAD = """\
# Values of the chart

Made by `python -m tools.chart docs` from `deploy/helm/anabranch/values.schema.json`, which helm
holds values against: a key that is not here is refused by name. [kubernetes.md](kubernetes.md) says
how to install; whole installations are in `deploy/helm/anabranch/examples`.
"""


def page() -> str:
    """The page's text."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    parts = [_HEAD]
    parts += ["## For the whole release\n", *_table(_plain(schema), values)]
    for name, value in schema["properties"].items():
        if "properties" not in value:
            continue
        parts.append(f"## `{name}`\n\n{value['description']}\n")
        shown = dict(value["properties"])
        if name in _SERVICES:
            parts.append("Besides the [keys of every service](#keys-of-every-service):\n")
            shown = {key: one for key, one in shown.items() if key not in _SHARED}
        elif name == "engineDefaults":
            parts.append(
                "Each entry of `engines` has a `name`, a `model`, and any of these keys, besides "
                "the [keys of every service](#keys-of-every-service) but `autoscaling`:\n"
            )
            own = {"variant": shown["image"]["properties"]["variant"]}
            shown = {
                "image": {**shown["image"], "properties": own},
                **{key: one for key, one in shown.items() if key not in _SHARED},
            }
        parts += _table(shown, values.get(name) or {})
    parts.append(
        "## Keys of every service\n\nThose of `router`, `cloudProxy`, `auth` and of each pool. The "
        "defaults are the router's.\n"
    )
    router = schema["properties"]["router"]["properties"]
    shared = {key: router[key] for key in router if key in _SHARED}
    parts += _table(shared, values["router"])
    return "\n".join(parts).rstrip("\n") + "\n"


def write() -> None:
    """Writes the page."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in schema["properties"].items() if "properties" not in v}


def _table(properties: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    rows = list(_rows(properties, values, ()))
    if not rows:
        return []
    head = ["| key | meaning | default |", "|---|---|---|"]
    return [
        "\n".join([*head, *(f"| `{key}` | {text} | {default} |" for key, text, default in rows)]),
        "",
    ]


def _rows(
    properties: Mapping[str, Any], values: Any, at: tuple[str, ...]
) -> Iterator[tuple[str, str, str]]:
    for key, value in properties.items():
        path = (*at, key)
        default = values.get(key) if isinstance(values, Mapping) else None
        if "properties" in value and value.get("additionalProperties") is False:
            yield from _rows(value["properties"], default or {}, path)
        else:
            text = value.get("description", "").replace("|", "\\|")
            if "enum" in value:
                text += " One of " + ", ".join(f"`{one}`" for one in value["enum"]) + "."
            yield ".".join(path), text, _default(default)


def _default(value: Any) -> str:
    if value in (None, "", [], {}):
        return "null" if value is None else "empty"
    return f"`{json.dumps(value, ensure_ascii=False)}`"
