"""What the setting `policy` names: a file, a key of Consul, or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.chassis.registry import check_key

_WITH_KEY_VALUES = ("consul:", "memory:")


@dataclass(frozen=True, slots=True)
class Place:
    """What the setting names: a file, a key, or with neither of them nothing."""

    path: Path | None = None
    key: str = ""


def parse_place(text: str) -> Place:
    """The place that `none`, `file:/path` or `consul:key` names; ValueError for another text."""
    kind, _, rest = text.partition(":")
    if text in ("", "none"):
        return Place()
    if kind == "file" and rest:
        return Place(path=Path(rest))
    if kind == "consul":
        check_key(rest)
        return Place(key=rest)
    raise ValueError("must be none, file:/path/of/policy.yaml or consul:key")


def has_key_values(registry: str) -> bool:
    """Whether a registry of this URL holds keys and values."""
    return registry.startswith(_WITH_KEY_VALUES)
