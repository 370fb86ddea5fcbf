"""Configuration in YAML: read, checked against a JSON schema, refused with every fault's path.

What the documents mean is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import orjson
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError


class BadConfiguration(Exception):
    """Configuration files that cannot be used; `problems` names each fault by its path."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("invalid configuration:\n" + "\n".join(f"  - {p}" for p in problems))


def faults(document: object, schema: Mapping[str, Any], where: str) -> list[str]:
    """Every violation of a JSON schema, each as "where: path: what is wrong"."""
    found = []
    validator = Draft202012Validator(schema)
    for error in sorted(validator.iter_errors(document), key=lambda e: [str(p) for p in e.path]):
        path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path)
        found.append(f"{where}: {path.lstrip('.') or 'document'}: {_meaning(error)}")
    return found


def _meaning(error: ValidationError) -> str:
    """What is wrong, without the value: an operator may have put a key where none belongs."""
    if error.validator in ("required", "additionalProperties", "dependentRequired"):
        return str(error.message)
    return f"does not satisfy {error.validator}: {orjson.dumps(error.validator_value).decode()}"


_TWICE = "a key is there twice"


class _Exact(yaml.SafeLoader):  # type: ignore[misc]
    """Reads fractions as the digits that were written, and takes no key for another's later word.

    For documents about money: a double holds neither every amount nor what was overwritten.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value if isinstance(key.value, str)]
        if len(set(names)) < len(names):
            raise yaml.constructor.ConstructorError(None, None, _TWICE, node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_fraction(self, node: Any) -> Decimal:
        try:
            value = Decimal(self.construct_scalar(node).replace("_", ""))
        except InvalidOperation:
            # Such as .inf, .nan and 1:30.5, which YAML takes for fractions too.
            raise yaml.constructor.ConstructorError(
                None, None, "not a number", node.start_mark
            ) from None
        return value


_Exact.add_constructor("tag:yaml.org,2002:float", _Exact.construct_fraction)


def read_yaml(path: Path, *, exact: bool = False) -> Any:
    """A YAML file's document; with `exact`, fractions are Decimals and no key may come twice.

    Raises BadConfiguration when it is missing or malformed.
    """
    try:
        loader = _Exact if exact else yaml.SafeLoader
        return yaml.load(path.read_text(encoding="utf-8"), loader)  # noqa: S506 - both are safe
    except OSError as unreadable:
        raise BadConfiguration([f"{path.name}: cannot be read: {unreadable.strerror}"]) from None
    except UnicodeDecodeError:
        raise BadConfiguration([f"{path.name}: is not UTF-8"]) from None
    except yaml.YAMLError as malformed:
        mark = getattr(malformed, "problem_mark", None)
        at = f" in line {mark.line + 1}" if mark else ""
        # The parser's own text may quote the line, and lines may hold keys.
        twice = getattr(malformed, "problem", None) == _TWICE
        what = "has a key twice in what begins" if twice else "is not valid YAML"
        raise BadConfiguration([f"{path.name}: {what}{at}"]) from None
