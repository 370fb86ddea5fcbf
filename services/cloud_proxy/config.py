"""The routes file: which models this proxy offers, from which provider, with which key.

Reads files once, at start, and refuses them whole with the path of every fault. The environment
is not read here: keys come through the settings (`api_keys`) or from files that a route names.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from services.chassis.settings import Secret
from services.cloud_proxy.configuration import BadConfiguration, faults, read_yaml
from services.cloud_proxy.profile_files import (
    missing_output_limit,
    parse_capabilities,
    parse_parameters,
    parse_prices,
    shared_definitions,
)
from services.cloud_proxy.profiles import ModelProfile, Profile

_SCHEMA = Path(__file__).parent / "routes.schema.json"


@dataclass(frozen=True, slots=True)
class Route:
    """One model as callers know it, and what stands behind it.

    `account` names the keys: routes with the same account share limits and cooling. `fallbacks`
    name the routes that are asked instead, in order, when this one fails before any output.
    """

    name: str
    aliases: tuple[str, ...]
    profile: Profile
    model: ModelProfile
    base_url: str
    account: str
    keys: tuple[Secret, ...]
    fallbacks: tuple[str, ...] = ()


def parse_keys(text: str) -> dict[str, tuple[Secret, ...]]:
    """Keys by name from "name=key" entries, separated by commas, spaces or line ends.

    A name that comes again adds a key to its pool. Raises BadConfiguration; the message never
    holds an entry's text, which may be a key.
    """
    found: dict[str, tuple[Secret, ...]] = {}
    problems = []
    for number, entry in enumerate(text.replace(",", " ").split(), start=1):
        name, equals, value = entry.partition("=")
        if not (name and equals and value):
            problems.append(f"api_keys: entry {number} is not name=key")
            continue
        found[name] = (*found.get(name, ()), Secret(value))
    if problems:
        raise BadConfiguration(problems)
    return found


def read_routes(
    path: Path, profiles: Mapping[str, Profile], keys: Mapping[str, tuple[Secret, ...]]
) -> dict[str, Route]:
    """Every route of a file by its name. Raises BadConfiguration with all faults at once."""
    return load_routes(read_yaml(path), path.name, path.parent, profiles, keys)


def load_routes(
    document: Any,
    where: str,
    directory: Path,
    profiles: Mapping[str, Profile],
    keys: Mapping[str, tuple[Secret, ...]],
) -> dict[str, Route]:
    """Every route of a document by its name; key files are relative to `directory`.

    Raises BadConfiguration with all faults at once.
    """
    problems = faults(document, _schema(), where)
    if problems:
        raise BadConfiguration(problems)
    routes: dict[str, Route] = {}
    names: set[str] = set()
    for number, entry in enumerate(document["models"]):
        at = f"{where}: models[{number}]"
        for name in (entry["name"], *entry.get("aliases", ())):
            if name in names:
                problems.append(f"{at}: the name {name} is there twice")
            names.add(name)
        try:
            routes[entry["name"]] = _route(entry, at, directory, profiles, keys)
        except BadConfiguration as bad:
            problems += bad.problems
    for number, entry in enumerate(document["models"]):
        for fallback in entry.get("fallbacks", ()):
            if fallback == entry["name"] or fallback not in names:
                problems.append(
                    f"{where}: models[{number}].fallbacks: {fallback} is no other model here"
                )
    if problems:
        raise BadConfiguration(problems)
    return routes


def _route(
    entry: Mapping[str, Any],
    where: str,
    directory: Path,
    profiles: Mapping[str, Profile],
    keys: Mapping[str, tuple[Secret, ...]],
) -> Route:
    profile = profiles.get(entry["provider"])
    if profile is None:
        known = ", ".join(sorted(profiles))
        raise BadConfiguration([f"{where}.provider: is none of {known}"])
    problems: list[str] = []
    model = profile.models.get(entry["model"])
    if model is None:
        if not profile.open_models:
            known = ", ".join(sorted(name for name in profile.models if name))
            raise BadConfiguration([f"{where}.model: {profile.name} has only {known}"])
        model = replace(profile.models[""], name=entry["model"])
    model = _overridden(model, entry)
    if "generate" in model.capabilities:
        stated = {"max_output": model.max_output}
        problems += [f"{where}.{fault}" for fault in missing_output_limit(profile.dialect, stated)]
    if "embed" in model.capabilities and not profile.paths.embed:
        problems.append(f"{where}.capabilities: {profile.name} cannot embed")
    if "resume_text" in model.capabilities and profile.continuation is None:
        problems.append(f"{where}.capabilities: {profile.name} cannot resume_text")
    base_url = entry.get("base_url", profile.base_url).rstrip("/")
    if not base_url:
        problems.append(f"{where}.base_url: is required for {profile.name}")
    elif base_url.startswith("http:") and not (
        entry.get("plaintext", False) or is_loopback(base_url)
    ):
        problems.append(f"{where}.base_url: is not https; set plaintext: true to send keys so")
    account, secrets = _keys(entry, where, directory, profile, keys, problems)
    if problems:
        raise BadConfiguration(problems)
    return Route(
        name=entry["name"],
        aliases=tuple(entry.get("aliases", ())),
        profile=profile,
        model=model,
        base_url=base_url,
        account=account,
        keys=secrets,
        fallbacks=tuple(entry.get("fallbacks", ())),
    )


def _overridden(model: ModelProfile, entry: Mapping[str, Any]) -> ModelProfile:
    changed = replace(
        model,
        context_length=entry.get("context_length", model.context_length),
        max_output=entry.get("max_output", model.max_output),
        streaming=entry.get("streaming", model.streaming),
        prices=parse_prices(entry.get("prices")) or model.prices,
        parameters={**model.parameters, **parse_parameters(entry.get("parameters", {}))},
    )
    if "capabilities" in entry:
        changed = replace(changed, capabilities=parse_capabilities(entry["capabilities"]))
    return changed


def _keys(
    entry: Mapping[str, Any],
    where: str,
    directory: Path,
    profile: Profile,
    keys: Mapping[str, tuple[Secret, ...]],
    problems: list[str],
) -> tuple[str, tuple[Secret, ...]]:
    """The account's name and its keys; one key a line in a key file."""
    if "api_key_file" in entry:
        path = directory / entry["api_key_file"]
        try:
            lines = path.read_text(encoding="ascii").split()
        except OSError as unreadable:
            problems.append(f"{where}.api_key_file: cannot be read: {unreadable.strerror}")
            return "", ()
        except UnicodeDecodeError:
            problems.append(f"{where}.api_key_file: is not plain ASCII")
            return "", ()
        if not lines:
            problems.append(f"{where}.api_key_file: is empty")
        return f"file:{path}", tuple(Secret(line) for line in lines)
    name = entry.get("api_key", profile.name)
    if name in keys:
        return f"key:{name}", keys[name]
    if profile.auth_scheme != "none":
        # What the route says is not repeated: it may be the key itself, put in the wrong place.
        called = "of that name" if "api_key" in entry else f"called {name}"
        problems.append(f"{where}: there is no key {called} in api_keys, and no api_key_file")
    return f"none:{profile.name}", ()


def is_loopback(url: str) -> bool:
    """Whether an address stays on this machine, where plain HTTP gives nothing away."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = orjson.loads(_SCHEMA.read_bytes())
    schema["$defs"] = shared_definitions()
    return schema
