"""Turns environment variables into one frozen dataclass per service; reports all mistakes at once.

It never reads the environment itself: `__main__` passes the mapping in. It knows nothing of what
a setting is used for.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import textwrap
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, TypeVar

from services.chassis.setting_values import Secret, parse, type_name

__all__ = [
    "Secret",
    "SettingsError",
    "describe",
    "load",
    "setting",
]

T = TypeVar("T")

# Kubernetes injects these for every Service of the namespace; a Service called anabranch-router
# would otherwise make the router refuse to start.
_SERVICE_LINK = re.compile(
    r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)"
)


class SettingsError(Exception):
    """The environment does not describe valid settings; `problems` lists every reason."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("invalid settings:\n" + "\n".join(f"  - {p}" for p in problems))


@dataclass(frozen=True)
class _Rule:
    help: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] | None = None


def setting(
    default: Any = MISSING,
    *,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: typing.Iterable[Any] | None = None,
    default_factory: Any = MISSING,
) -> Any:
    """Declares a field of a settings dataclass; without a default the variable is required.

    `minimum` and `maximum` are inclusive. `choices` bounds the values (each item, for tuples).
    """
    rule = _Rule(help, minimum, maximum, None if choices is None else tuple(choices))
    keywords: dict[str, Any] = {"metadata": {"setting": rule}}
    if default is not MISSING:
        keywords["default"] = default
    if default_factory is not MISSING:
        keywords["default_factory"] = default_factory
    return dataclasses.field(**keywords)


def load(cls: type[T], prefix: str, environ: Mapping[str, str]) -> T:
    """Builds `cls` from the variables named PREFIX + FIELD, in upper case.

    Any field may instead come from the file named by PREFIX + FIELD + `_FILE` (one trailing
    newline dropped); a field whose own name ends in `_file` keeps its variable. Numbers of type
    float accept a duration unit (us ms s m h d) and are then seconds. A `__post_init__` may raise
    ValueError or SettingsError to refuse a combination.

    Raises SettingsError with every problem found, unknown variables of the prefix included.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    fields = {prefix + f.name.upper(): f for f in _fields(cls)}
    consumed: set[str] = set()
    for variable, field in fields.items():
        consumed.add(variable)
        if variable + "_FILE" not in fields:
            consumed.add(variable + "_FILE")
        try:
            text = _text_of(variable, fields, environ)
            if text is None:
                if field.default is MISSING and field.default_factory is MISSING:
                    problems.append(f"{variable} is required: {_rule(field).help}".rstrip(": "))
                continue
            value = parse(text, hints[field.name])
            _check(value, _rule(field))
        except ValueError as refused:
            problems.append(f"{variable} {refused}")
        else:
            values[field.name] = value
    problems += _unknown(prefix, consumed, environ)
    if problems:
        raise SettingsError(problems)
    try:
        return cls(**values)
    except ValueError as refused:
        raise SettingsError([str(refused)]) from None


def describe(cls: type[Any], prefix: str) -> str:
    """The help text: one paragraph per variable with its type, default and meaning."""
    hints = typing.get_type_hints(cls)
    blocks: list[str] = []
    for field in _fields(cls):
        rule = _rule(field)
        facts = [type_name(hints[field.name]), f"default {_default_text(field)}"]
        if rule.minimum is not None:
            facts.append(f"at least {rule.minimum:g}")
        if rule.maximum is not None:
            facts.append(f"at most {rule.maximum:g}")
        if rule.choices is not None:
            facts.append("one of " + ", ".join(str(c) for c in rule.choices))
        meaning = textwrap.fill(rule.help, 92, initial_indent="      ", subsequent_indent="      ")
        blocks.append(f"  {prefix}{field.name.upper()}  ({'; '.join(facts)})\n{meaning}".rstrip())
    closing = (
        "Any variable X may be given as X_FILE, the path of a file that holds the value.\n"
        "Durations are seconds, or carry a unit: 500ms, 30s, 2m, 1h."
    )
    return "Environment variables:\n\n" + "\n\n".join(blocks) + "\n\n" + closing


def _fields(cls: type[Any]) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(cls) if f.init]


def _rule(field: dataclasses.Field[Any]) -> _Rule:
    rule = field.metadata.get("setting")
    return rule if isinstance(rule, _Rule) else _Rule()


def _text_of(variable: str, fields: Mapping[str, object], environ: Mapping[str, str]) -> str | None:
    from_file = variable + "_FILE"
    if from_file in fields or from_file not in environ:
        return environ.get(variable)
    if variable in environ:
        raise ValueError(f"and {from_file} are both set; keep one")
    try:
        text = Path(environ[from_file]).read_text(encoding="utf-8")
    except OSError as unreadable:
        raise ValueError(f"cannot be read from {from_file}: {unreadable.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"cannot be read from {from_file}: not UTF-8") from None
    return text.removesuffix("\n").removesuffix("\r")


def _unknown(prefix: str, known: set[str], environ: Mapping[str, str]) -> list[str]:
    problems = []
    for variable in sorted(environ):
        if not variable.startswith(prefix) or variable in known:
            continue
        port_url = variable.endswith("PORT") and "://" in environ[variable]
        if port_url or _SERVICE_LINK.fullmatch(variable[len(prefix) :]):
            continue
        close = difflib.get_close_matches(variable, sorted(known), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        problems.append(f"{variable} is not a setting{hint}")
    return problems


def _check(value: Any, rule: _Rule) -> None:
    if value is None:
        return
    for item in value if isinstance(value, tuple) else (value,):
        if rule.choices is not None and item not in rule.choices:
            raise ValueError(f"must be one of {', '.join(str(c) for c in rule.choices)}")
        if rule.minimum is not None and item < rule.minimum:
            raise ValueError(f"must be at least {rule.minimum:g}, not {item!r}")
        if rule.maximum is not None and item > rule.maximum:
            raise ValueError(f"must be at most {rule.maximum:g}, not {item!r}")


def _default_text(field: dataclasses.Field[Any]) -> str:
    if field.default is not MISSING:
        value = field.default
    elif field.default_factory is not MISSING:
        value = field.default_factory()
    else:
        return "none, required"
    if isinstance(value, Secret):
        return "***"
    if value is None or value in ("", ()):
        return "empty"
    if isinstance(value, tuple):
        return ",".join(str(v) for v in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
