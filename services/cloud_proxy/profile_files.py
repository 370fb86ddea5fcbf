"""Reads provider profiles from YAML and refuses bad ones with the path of each fault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import orjson

from services.cloud_proxy.configuration import BadConfiguration, faults, read_yaml
from services.cloud_proxy.profiles import (
    TOOL_CHOICES,
    Continuation,
    LongPromptPrices,
    ModelProfile,
    Parameter,
    Paths,
    Prices,
    Profile,
    Reasoning,
    UsageRules,
)

PROFILES = Path(__file__).parent / "profiles"


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


def parse_profile(document: Any, where: str) -> Profile:
    """A checked profile. Raises BadConfiguration naming every fault."""
    problems = faults(document, _schema(), where)
    if problems:
        raise BadConfiguration(problems)
    problems = [f"{where}: {problem}" for problem in _contradictions(document)]
    if problems:
        raise BadConfiguration(problems)
    common = parse_parameters(document["parameters"])
    models = {
        name: _model(name, cast(dict[str, Any], model or {}), common)
        for name, model in document["models"].items()
    }
    paths = document["paths"]
    usage = document.get("usage", {})
    reasoning = document.get("reasoning", {})
    continuation = document.get("continuation")
    return Profile(
        name=document["name"],
        dialect=document["dialect"],
        summary=document["summary"],
        documentation=document.get("documentation", ""),
        base_url=document.get("base_url", "").rstrip("/"),
        paths=Paths(**{"stream": paths["chat"], **paths}),
        auth_scheme=document["auth"]["scheme"],
        auth_header=document["auth"].get("header", ""),
        headers=document.get("headers", {}),
        body=document.get("body", {}),
        usage=UsageRules(**usage),
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
        continuation=Continuation(**{"flag": "", "path": "", **continuation})
        if continuation is not None
        else None,
        tool_choice=frozenset(document.get("tool_choice", TOOL_CHOICES)),
        limits=document.get("limits", "account"),
        drain_seconds=document.get("drain_seconds", 0.0),
        simulated=document.get("simulated", False),
        open_models=document.get("open_models", False),
        # The nameless model is what an unlisted one starts from.
        models={**models, "": ModelProfile("", parameters=common)},
    )


def _contradictions(document: Mapping[str, Any]) -> list[str]:
    """What the schema cannot say."""
    found = []
    if not document["models"] and not document.get("open_models", False):
        found.append("models: is empty and open_models is not set")
    for name, model in document["models"].items():
        capabilities = parse_capabilities((model or {}).get("capabilities", ()))
        if "resume_text" in capabilities and document.get("continuation") is None:
            found.append(f"models.{name}.capabilities: resume_text needs continuation")
        if "embed" in capabilities and not document["paths"].get("embed"):
            found.append(f"models.{name}.capabilities: embed needs paths.embed")
        if "generate" in capabilities:
            missing = missing_output_limit(document["dialect"], model)
            found += [f"models.{name}.{fault}" for fault in missing]
    return found


def missing_output_limit(dialect: str, model: Mapping[str, Any] | None) -> list[str]:
    """A fault where a dialect must always be told how much may be generated, and nobody knows."""
    if dialect == "anthropic" and not (model or {}).get("max_output"):
        return ["max_output: is required: every request must state a limit"]
    return []


def parse_parameters(document: Mapping[str, Any]) -> dict[str, Parameter]:
    """The parameter rules of a profile or a model."""
    return {
        name: Parameter(cast(Literal["drop", "refuse"], rule))
        if isinstance(rule, str)
        else Parameter("send", rule["send"], rule.get("minimum"), rule.get("maximum"))
        for name, rule in document.items()
    }


def parse_capabilities(names: Iterable[str]) -> frozenset[str]:
    """What a model can do. One that embeds does not generate unless that is said, too."""
    found = frozenset(names)
    return found if "embed" in found else found | {"generate"}


def parse_prices(document: Mapping[str, Any] | None) -> Prices | None:
    """A price table that has passed the schema."""
    if not document:
        return None
    fields = dict(document)
    long_prompt = fields.pop("long_prompt", None)
    return Prices(**fields, long_prompt=LongPromptPrices(**long_prompt) if long_prompt else None)


def _model(name: str, document: dict[str, Any], common: Mapping[str, Parameter]) -> ModelProfile:
    return ModelProfile(
        name=name,
        context_length=document.get("context_length", 0),
        max_output=document.get("max_output", 0),
        capabilities=parse_capabilities(document.get("capabilities", ())),
        parameters={**common, **parse_parameters(document.get("parameters", {}))},
        streaming=document.get("streaming", True),
        effort=document.get("effort", {}),
        prices=parse_prices(document.get("prices")),
    )


@cache
def _schema() -> dict[str, Any]:
    return cast(dict[str, Any], orjson.loads((PROFILES / "profile.schema.json").read_bytes()))


def shared_definitions() -> dict[str, Any]:
    """The schema's $defs, for other files that state models and prices."""
    return cast(dict[str, Any], _schema()["$defs"])
