"""What a provider can do, as its profile says, and its profile as plain data. Prints nothing."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from anabranch.types import as_dict
from services.cloud_proxy.profile_files import shared_definitions
from services.cloud_proxy.profiles import ModelProfile, Parameter, Prices, Profile

PARAMETERS: tuple[str, ...] = tuple(shared_definitions()["parameter"]["enum"])
"""Every sampling parameter that a profile may have a rule for."""


class Support(StrEnum):
    """Whether a provider can do something. ROUTE: where the routes file says that a model can."""

    YES = "yes"
    ROUTE = "route"
    NO = "no"


def models_of(profile: Profile) -> list[ModelProfile]:
    """The models that the profile lists."""
    return [model for name, model in profile.models.items() if name]


def supported(profile: Profile) -> dict[str, Support]:
    """What the provider can do, by name."""
    models = models_of(profile)

    def some(capability: str, possible: bool) -> Support:
        if not possible:
            return Support.NO
        if any(capability in model.capabilities for model in models):
            return Support.YES
        return Support.ROUTE if profile.open_models else Support.NO

    streams = profile.open_models or any(model.streaming for model in models)
    reasons = bool(profile.reasoning.text_field or profile.reasoning.effort)
    return {
        "streaming": Support.YES if streams else Support.NO,
        "tools": some("tools", True),
        "images": some("images", profile.content == "parts"),
        "structured_output": some("structured_output", bool(profile.response_formats)),
        "reasoning": some("reasoning", reasons or any(model.effort for model in models)),
        "embed": some("embed", bool(profile.paths.embed)),
        "count": Support.YES if profile.paths.count else Support.NO,
        "continuation": some("resume_text", profile.continuation is not None),
    }


def priced_on(profile: Profile) -> tuple[str, str] | None:
    """The dates of the oldest and the newest price; None when no model has one."""
    dates = sorted(model.prices.as_of for model in models_of(profile) if model.prices)
    return (dates[0], dates[-1]) if dates else None


def listed(profile: Profile) -> dict[str, Any]:
    """The provider in a list, JSON-ready."""
    dates = priced_on(profile)
    return {
        "name": profile.name,
        "dialect": profile.dialect,
        "summary": profile.summary,
        "documentation": profile.documentation,
        "base_url": profile.base_url,
        "supports": {name: str(support) for name, support in supported(profile).items()},
        "models": len(models_of(profile)),
        "open_models": profile.open_models,
        "prices_as_of": list(dates) if dates else None,
        "simulated": profile.simulated,
    }


def described(profile: Profile) -> dict[str, Any]:
    """The whole profile, JSON-ready; prices stay micro-USD per million tokens."""
    common = profile.models[""].parameters
    shown = as_dict(
        {
            **listed(profile),
            "paths": profile.paths,
            "auth": {"scheme": profile.auth_scheme, "header": profile.auth_header},
            "headers": profile.headers,
            "body": profile.body,
            "usage": profile.usage,
            "terminal": profile.terminal,
            "content": profile.content,
            "finish_reasons": profile.finish_reasons,
            "response_formats": sorted(profile.response_formats),
            "tool_choice": sorted(profile.tool_choice),
            "reasoning": {
                "field": profile.reasoning.text_field,
                "on_by_default": profile.reasoning.on_by_default,
                "replay": profile.reasoning.replay,
                "ignores": sorted(profile.reasoning.ignores),
                "effort": profile.reasoning.effort,
            },
            "continuation": profile.continuation,
            "limits": profile.limits,
            "drain_seconds": profile.drain_seconds,
            "parameters": _rules(common),
            "refused_parameters": refused(common),
            "models": [_model(model, common) for model in models_of(profile)],
        }
    )
    assert isinstance(shown, dict)
    return shown


def refused(rules: Mapping[str, Parameter]) -> list[str]:
    """The parameters that are refused, with or without a rule of their own."""
    return [name for name in PARAMETERS if name not in rules or rules[name].rule == "refuse"]


def own_rules(model: ModelProfile, common: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """A model's parameters as far as they differ from the provider's."""
    return {n: rule for n, rule in model.parameters.items() if common.get(n) != rule}


def _rules(rules: Mapping[str, Parameter]) -> dict[str, Any]:
    return {name: as_dict(rule) for name, rule in rules.items() if rule.rule != "refuse"}


def _model(model: ModelProfile, common: Mapping[str, Parameter]) -> dict[str, Any]:
    return {
        "name": model.name,
        "context_length": model.context_length or None,
        "max_output": model.max_output or None,
        "capabilities": sorted(model.capabilities),
        "streaming": model.streaming,
        "parameters": {name: as_dict(rule) for name, rule in own_rules(model, common).items()},
        "effort": model.effort,
        "prices": model.prices,
    }


def dollars(micros: int) -> str:
    """Micro-USD in dollars, exact: 2800 is $0.0028."""
    whole, part = divmod(micros, 1_000_000)
    return f"${whole}.{f'{part:06}'.rstrip('0'):0<2}"


def price_texts(prices: Prices | None) -> tuple[str, str, str, str]:
    """Input, cached input, output and date, for people."""
    if prices is None:
        return ("-", "-", "-", "-")
    return (
        dollars(prices.input),
        dollars(prices.cached_input),
        dollars(prices.output),
        prices.as_of,
    )
