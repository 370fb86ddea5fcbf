"""The routes file: which models this proxy offers, from which provider, with which key.

Reads files once, at start, and refuses them whole with the path of every fault. The environment
is not read here, and no key is kept: a route only says where its account's keys are.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from services.cloud_proxy.configuration import BadConfiguration, faults, read_yaml
from services.cloud_proxy.key_sources import BadKeys, parse_key_file, read_key_file
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

    `account` names the keys: routes with the same account share limits and cooling. `key_file`
    holds them, where they are not in the settings. `fallbacks` name the routes that are asked
    instead, in order, when this one fails before any output.
    """

    name: str
    aliases: tuple[str, ...]
    profile: Profile
    model: ModelProfile
    base_url: str
    account: str
    key_file: Path | None = None
    fallbacks: tuple[str, ...] = ()


def read_routes(
    path: Path,
    profiles: Mapping[str, Profile],
    keys: Container[str],
    keys_dir: Path | None = None,
) -> dict[str, Route]:
    """Every route of a file by its name. Raises BadConfiguration with all faults at once."""
    return load_routes(read_yaml(path), path.name, path.parent, profiles, keys, keys_dir)


def load_routes(
    document: Any,
    where: str,
    directory: Path,
    profiles: Mapping[str, Profile],
    keys: Container[str],
    keys_dir: Path | None = None,
) -> dict[str, Route]:
    """Every route of a document by its name; key files are relative to `directory`.

    `keys` holds the names that the settings have keys for, `keys_dir` files named like accounts.
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
            routes[entry["name"]] = _route(entry, at, directory, profiles, keys, keys_dir)
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
    keys: Container[str],
    keys_dir: Path | None,
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
    try:
        account, key_file = _account(entry, where, directory, profile, keys, keys_dir)
    except BadConfiguration as bad:
        problems += bad.problems
    if problems:
        raise BadConfiguration(problems)
    return Route(
        name=entry["name"],
        aliases=tuple(entry.get("aliases", ())),
        profile=profile,
        model=model,
        base_url=base_url,
        account=account,
        key_file=key_file,
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


def _account(
    entry: Mapping[str, Any],
    where: str,
    directory: Path,
    profile: Profile,
    keys: Container[str],
    keys_dir: Path | None,
) -> tuple[str, Path | None]:
    """The account's name, and the file with its keys where they are in one."""
    if "api_key_file" in entry:
        path = directory / entry["api_key_file"]
        _check_file(path, f"{where}.api_key_file")
        return f"file:{path}", path
    name = entry.get("api_key", profile.name)
    mounted = keys_dir / name if keys_dir else None
    if mounted is not None and os.path.lexists(mounted):
        if name in keys:
            raise BadConfiguration(
                [f"{where}: the keys called {name} are in api_keys and keys_dir"]
            )
        _check_file(mounted, f"{where}: keys_dir: {name}")
        return f"key:{name}", mounted
    if name in keys:
        return f"key:{name}", None
    if profile.auth_scheme == "none":
        return f"none:{profile.name}", None
    # What the route says is not repeated: it may be the key itself, put in the wrong place.
    called = "of that name" if "api_key" in entry else f"called {name}"
    places = "api_keys, and no api_key_file" if keys_dir is None else "api_keys or keys_dir"
    raise BadConfiguration([f"{where}: there is no key {called} in {places}"])


def _check_file(path: Path, where: str) -> None:
    try:
        parse_key_file(read_key_file(path))
    except BadKeys as bad:
        raise BadConfiguration([f"{where}: {bad}"]) from None


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
