"""How `anabranch providers` shows profiles: tables for people, Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import click
import orjson

from anabranch.cli.render import print_table
from services.cloud_proxy.profiles import ModelProfile, Parameter, Profile
from services.cloud_proxy.providers_support import (
    Support,
    dollars,
    models_of,
    own_rules,
    price_texts,
    priced_on,
    refused,
    supported,
)

_LEGEND = "?: where the routes file says that the model can. +: further models may be routed to."


def print_providers(profiles: Iterable[Profile]) -> None:
    """One line each."""
    print_table(
        ("PROVIDER", "DIALECT", "BASE URL", "CAN", "MODELS", "PRICES OF"),
        map(_row, profiles),
        "There is no provider.",
    )
    click.secho(_LEGEND, err=True, dim=True)


def markdown(profiles: Iterable[Profile]) -> str:
    """The same table for a page of documentation."""
    lines = ["| provider | dialect | can | models | prices of |", "|---|---|---|---|---|"]
    for profile in profiles:
        name, dialect, _, can, models, dates = _row(profile)
        link = f"[{name}]({profile.documentation})" if profile.documentation else name
        lines.append(f"| {link} | {dialect} | {can} | {models} | {dates} |")
    return "\n".join(lines)


def print_provider(profile: Profile) -> None:
    """Everything that the profile says."""
    for title, text in _facts(profile):
        click.echo(f"{title + ':':<18}{text}")
    click.echo()
    common = profile.models[""].parameters
    print_table(
        ("PARAMETER", "SENT AS", "RANGE"),
        ((name, *_rule(rule)) for name, rule in common.items() if rule.rule != "refuse"),
        "It takes no sampling parameter.",
    )
    click.echo(f"refused: {', '.join(refused(common)) or 'none'}")
    click.echo()
    models = models_of(profile)
    print_table(
        ("MODEL", "CONTEXT", "LONGEST", "CAN", "INPUT", "CACHED", "OUTPUT", "AS OF"),
        map(_model_row, models),
        "No model is listed.",
    )
    if any(model.prices for model in models):
        click.echo("prices in USD per million tokens")
    if profile.open_models:
        click.echo("other models: the routes file says what they can do and cost")
    for model in models:
        for line in _notes(model, common):
            click.echo(f"{model.name}: {line}")


def _row(profile: Profile) -> tuple[str, ...]:
    can = [
        name.replace("_", " ") + ("?" if support is Support.ROUTE else "")
        for name, support in supported(profile).items()
        if support is not Support.NO
    ]
    dates = priced_on(profile)
    return (
        profile.name,
        profile.dialect,
        profile.base_url or "of the route",
        ", ".join(can),
        f"{len(models_of(profile))}{'+' if profile.open_models else ''}",
        "-" if dates is None else dates[0] if dates[0] == dates[1] else " to ".join(dates),
    )


def _facts(profile: Profile) -> Iterable[tuple[str, str]]:
    yield "provider", f"{profile.name}: {profile.summary}"
    if profile.simulated:
        yield "simulated", "its answers come from no model"
    yield "documentation", profile.documentation or "-"
    yield "dialect", profile.dialect
    yield "base URL", profile.base_url or "given by the routes file"
    paths = profile.paths
    for name, path in (
        ("chat", paths.chat),
        ("stream", "" if paths.stream == paths.chat else paths.stream),
        ("embed", paths.embed),
        ("count", f"{paths.count} → {paths.count_result}".rstrip(" →") if paths.count else ""),
    ):
        if path:
            yield f"path of {name}", path
    yield "key", f"{profile.auth_scheme} {profile.auth_header}".rstrip()
    if profile.headers:
        yield "headers", ", ".join(f"{k}: {v}" for k, v in profile.headers.items())
    if profile.body:
        yield "body", _json(profile.body)
    yield from _wire_facts(profile)
    yield from _reasoning_facts(profile)
    rule = profile.continuation
    if rule is not None:
        ways = [
            f"flag {rule.flag}" if rule.flag else "",
            f"path {rule.path}" if rule.path else "",
            f"body {_json(rule.body)}" if rule.body else "",
        ]
        yield "continues a turn", ", ".join(filter(None, ways)) or "from the turn alone"
    yield "a 429 is about", f"the {profile.limits}"
    if profile.drain_seconds:
        yield "when cancelled", f"is read on for {profile.drain_seconds:g} s: it is billed anyway"


def _wire_facts(profile: Profile) -> Iterable[tuple[str, str]]:
    asked = "asked for" if profile.usage.ask else "stated unasked"
    place = " inside the choice" if profile.usage.placement == "choice" else ""
    added = ", reasoning is added" if profile.usage.reasoning == "added" else ""
    yield "usage", f"{asked}{place}{added}"
    if profile.terminal == "finish":
        yield "stream ends", "with a finish reason, without a mark of its own"
    if profile.content == "text":
        yield "content", "one text; no images"
    if profile.finish_reasons:
        yield "finish reasons", ", ".join(f"{k} → {v}" for k, v in profile.finish_reasons.items())
    yield "response formats", ", ".join(sorted(profile.response_formats)) or "none"
    yield "tool choice", ", ".join(sorted(profile.tool_choice))


def _reasoning_facts(profile: Profile) -> Iterable[tuple[str, str]]:
    rules = profile.reasoning
    if rules.text_field:
        yield "reasoning field", rules.text_field
    if rules.on_by_default:
        yield "reasons", "unless told otherwise"
    if rules.replay:
        yield "replay", "reasoning before tool calls goes back with the next turn"
    if rules.ignores:
        yield "while reasoning", f"leaves out {', '.join(sorted(rules.ignores))}"
    for effort, body in rules.effort.items():
        yield f"effort {effort}", _json(body)


def _rule(rule: Parameter) -> tuple[str, str]:
    if rule.rule == "drop":
        return ("(left out, and logged)", "")
    low, high = rule.minimum, rule.maximum
    if low is None and high is None:
        return (rule.name, "any")
    if low is None:
        return (rule.name, f"up to {high:g}")
    return (rule.name, f"from {low:g}" if high is None else f"{low:g} to {high:g}")


def _model_row(model: ModelProfile) -> Sequence[str]:
    return (
        model.name,
        str(model.context_length or "?"),
        str(model.max_output or "?"),
        ", ".join(sorted(c.replace("_", " ") for c in model.capabilities)),
        *price_texts(model.prices),
    )


def _notes(model: ModelProfile, common: Mapping[str, Parameter]) -> Iterable[str]:
    if not model.streaming:
        yield "does not stream"
    for name, rule in own_rules(model, common).items():
        if rule.rule == "refuse":
            yield f"{name} is refused"
        elif rule.rule == "drop":
            yield f"{name} is left out, and that is logged"
        else:
            yield f"{name} is sent as {' '.join(_rule(rule))}"
    if model.effort:
        yield "effort " + ", ".join(f"{k} {_json(v)}" for k, v in model.effort.items())
    prices = model.prices
    if prices is None:
        return
    if prices.cache_write is not None:
        yield f"{dollars(prices.cache_write)} for what is written to the cache"
    if prices.long_prompt is not None:
        long = prices.long_prompt
        yield (
            f"{dollars(long.input)}, {dollars(long.cached_input)}, {dollars(long.output)} "
            f"beyond {long.over} prompt tokens"
        )
    yield f"prices from {prices.source}"


def _json(value: Mapping[str, object]) -> str:
    return orjson.dumps(value).decode()
