"""Providers as data: reads profiles/*.yaml, refuses bad ones with the path of each fault.

Knows what a provider is like, not how to talk to it: that is the dialect's part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import orjson
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

PROFILES = Path(__file__).parent / "profiles"


class BadConfiguration(Exception):
    """Configuration files that cannot be used; `problems` names each fault by its path."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("invalid configuration:\n" + "\n".join(f"  - {p}" for p in problems))


@dataclass(frozen=True, slots=True)
class Prices:
    """Micro-USD per million tokens, with where and when they were read."""

    input: int
    cached_input: int
    output: int
    source: str
    as_of: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """How a sampling parameter reaches the provider.

    `minimum` and `maximum` bound its value; for lists (stop), `maximum` bounds their length.
    """

    rule: Literal["send", "drop", "refuse"]
    name: str = ""
    minimum: float | None = None
    maximum: float | None = None


REFUSED = Parameter("refuse")


@dataclass(frozen=True, slots=True)
class Reasoning:
    """How a provider shows reasoning and is told how much of it is wanted."""

    text_field: str = ""
    on_by_default: bool = False
    replay: bool = False
    ignores: frozenset[str] = frozenset()
    effort: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a provider is told to go on with an assistant turn: a flag on its last message."""

    flag: str
    path: str


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """One of a provider's models. `prices` is None when they are not known."""

    name: str
    context_length: int = 0
    capabilities: frozenset[str] = frozenset({"generate"})
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    streaming: bool = True
    prices: Prices | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """One provider."""

    name: str
    dialect: str
    summary: str
    base_url: str
    path: str
    auth_scheme: Literal["bearer", "header", "none"]
    auth_header: str
    ask_usage: bool
    usage_placement: Literal["chunk", "choice"]
    terminal: Literal["done", "finish"]
    content: Literal["text", "parts"]
    finish_reasons: Mapping[str, str]
    response_formats: frozenset[str]
    reasoning: Reasoning
    continuation: Continuation | None
    simulated: bool
    open_models: bool
    models: Mapping[str, ModelProfile]


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


def read_yaml(path: Path) -> Any:
    """A YAML file's document. Raises BadConfiguration when it is missing or malformed."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as unreadable:
        raise BadConfiguration([f"{path.name}: cannot be read: {unreadable.strerror}"]) from None
    except UnicodeDecodeError:
        raise BadConfiguration([f"{path.name}: is not UTF-8"]) from None
    except yaml.YAMLError as malformed:
        mark = getattr(malformed, "problem_mark", None)
        at = f" in line {mark.line + 1}" if mark else ""
        # The parser's own text may quote the line, and lines may hold keys.
        raise BadConfiguration([f"{path.name}: is not valid YAML{at}"]) from None


def parse_profile(document: Any, where: str) -> Profile:
    """A checked profile. Raises BadConfiguration naming every fault."""
    problems = faults(document, _schema(), where)
    if problems:
        raise BadConfiguration(problems)
    if not document["models"] and not document.get("open_models", False):
        problems.append(f"{where}: models: is empty and open_models is not set")
    reasoning = document.get("reasoning", {})
    continuation = document.get("continuation")
    for name, model in document["models"].items():
        if "resume_text" in model.get("capabilities", ()) and not continuation:
            problems.append(f"{where}: models.{name}.capabilities: resume_text needs continuation")
    if problems:
        raise BadConfiguration(problems)
    common = parse_parameters(document["parameters"])
    models = {
        name: _model(name, cast(dict[str, Any], model or {}), common)
        for name, model in document["models"].items()
    }
    return Profile(
        name=document["name"],
        dialect=document["dialect"],
        summary=document["summary"],
        base_url=document.get("base_url", "").rstrip("/"),
        path=document["path"],
        auth_scheme=document["auth"]["scheme"],
        auth_header=document["auth"].get("header", ""),
        ask_usage=document["usage"]["ask"],
        usage_placement=document["usage"]["placement"],
        terminal=document.get("terminal", "done"),
        content=document.get("content", "parts"),
        finish_reasons=document.get("finish_reasons", {}),
        response_formats=frozenset(document.get("response_formats", ())),
        reasoning=Reasoning(
            text_field=reasoning.get("field", ""),
            on_by_default=reasoning.get("on_by_default", False),
            replay=reasoning.get("replay", False),
            ignores=frozenset(reasoning.get("ignores", ())),
            effort=reasoning.get("effort", {}),
        ),
        continuation=Continuation(continuation["flag"], continuation.get("path", document["path"]))
        if continuation
        else None,
        simulated=document.get("simulated", False),
        open_models=document.get("open_models", False),
        # The nameless model is what an unlisted one starts from.
        models={**models, "": ModelProfile("", parameters=common)},
    )


def parse_parameters(document: Mapping[str, Any]) -> dict[str, Parameter]:
    """The parameter rules of a profile or a model."""
    return {
        name: Parameter(cast(Literal["drop", "refuse"], rule))
        if isinstance(rule, str)
        else Parameter("send", rule["send"], rule.get("minimum"), rule.get("maximum"))
        for name, rule in document.items()
    }


def parse_prices(document: Mapping[str, Any] | None) -> Prices | None:
    """A price table that has passed the schema."""
    return Prices(**document) if document else None


def _model(name: str, document: dict[str, Any], common: Mapping[str, Parameter]) -> ModelProfile:
    return ModelProfile(
        name=name,
        context_length=document.get("context_length", 0),
        capabilities=frozenset(document.get("capabilities", ("generate",))) | {"generate"},
        parameters={**common, **parse_parameters(document.get("parameters", {}))},
        streaming=document.get("streaming", True),
        prices=parse_prices(document.get("prices")),
    )


def load_profiles(directory: Path) -> dict[str, Profile]:
    """Every profile of a directory by name.

    Raises BadConfiguration with the faults of all files at once.
    """
    found: dict[str, Profile] = {}
    problems: list[str] = []
    for path in sorted(directory.glob("*.yaml")):
        try:
            profile = parse_profile(read_yaml(path), path.name)
        except BadConfiguration as bad:
            problems += bad.problems
            continue
        if profile.name in found:
            problems.append(f"{path.name}: name: {profile.name} is there twice")
        found[profile.name] = profile
    if problems:
        raise BadConfiguration(problems)
    return found


@cache
def built_in_profiles() -> Mapping[str, Profile]:
    """The profiles that ship with the service, read once. Raises BadConfiguration."""
    return load_profiles(PROFILES)


@cache
def _schema() -> dict[str, Any]:
    return cast(dict[str, Any], orjson.loads((PROFILES / "profile.schema.json").read_bytes()))


def shared_definitions() -> dict[str, Any]:
    """The schema's $defs, for other files that state models and prices."""
    return cast(dict[str, Any], _schema()["$defs"])
