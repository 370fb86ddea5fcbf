"""Profiles and routes: what ships is valid, what is wrong is refused with its path."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from services.chassis.settings import SettingsError, load
from services.cloud_proxy.config import read_routes
from services.cloud_proxy.masking import NAMES
from services.cloud_proxy.profile_files import (
    BadConfiguration,
    built_in_profiles,
    load_profiles,
    parse_profile,
)
from services.cloud_proxy.settings import Settings

KEYS = {"deepseek", "openai", "simulator"}


def routes(tmp_path: Path, *models: dict[str, Any], keys=KEYS):
    path = tmp_path / "routes.yaml"
    path.write_text(yaml.safe_dump({"models": list(models)}))
    return read_routes(path, built_in_profiles(), keys)


def problems(call, *args, **kwargs) -> list[str]:
    with pytest.raises(BadConfiguration) as caught:
        call(*args, **kwargs)
    return caught.value.problems


def test_shipped_profiles_are_valid_and_state_where_prices_come_from():
    profiles = built_in_profiles()
    assert {"deepseek", "openai", "openai-compatible", "simulator"} <= set(profiles)
    for profile in profiles.values():
        assert profile.base_url.startswith("https://") or profile.open_models
        for model in profile.models.values():
            if model.prices:
                assert model.prices.source
                assert model.prices.as_of


def test_bad_profiles_are_refused_with_every_path():
    document = {
        "name": "Bad Name",
        "dialect": "morse",
        "summary": "x",
        "path": "/x",
        "auth": {"scheme": "header"},
        "usage": {"ask": True, "placement": "chunk"},
        "parameters": {"warmth": "drop", "top_p": {"send": "p", "most": 3}},
        "models": {"a": {"capabilities": ["flies"], "prices": {"input": -1}}},
    }
    found = "\n".join(problems(parse_profile, document, "bad.yaml"))
    priced = "models.a.prices"
    for path in ("name", "dialect", "auth", "parameters", "parameters.top_p", priced):
        assert f"bad.yaml: {path}: " in found
    for path in ("models.a.capabilities[0]", "models.a.prices.input"):
        assert f"bad.yaml: {path}: " in found


def test_one_bad_profile_names_its_file_and_line_without_quoting_it(tmp_path):
    (tmp_path / "p.yaml").write_text("name: x\nkey: 'sk-secret\n")
    (found,) = problems(load_profiles, tmp_path)
    assert found.startswith("p.yaml: is not valid YAML in line")
    assert "sk-secret" not in found


def test_route_takes_what_the_profile_says_and_what_it_overrides(tmp_path):
    prices = {
        "input": 1,
        "cached_input": 1,
        "output": 1,
        "source": "contract",
        "as_of": "2026-01-01",
    }
    found = routes(
        tmp_path,
        {"name": "ds", "provider": "deepseek", "model": "deepseek-v4-pro", "aliases": ["r1"]},
        {"name": "own", "provider": "openai", "model": "gpt-x", "capabilities": ["tools"],
         "context_length": 5, "prices": prices, "parameters": {"temperature": "drop"}},
    )  # fmt: skip
    assert found["ds"].base_url == "https://api.deepseek.com"
    assert found["ds"].model.prices is not None
    assert found["ds"].account == "key:deepseek"
    own = found["own"].model
    assert own.capabilities == {"generate", "tools"}
    assert (own.context_length, own.parameters["temperature"].rule) == (5, "drop")
    assert own.parameters["top_p"].rule == "send"


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"provider": "nobody"}, "models[0].provider: is none of"),
        ({"model": "gpt-9"}, "models[0].model: deepseek has only"),
        ({"base_url": "http://far.example"}, "models[0].base_url: is not https"),
        ({"base_url": "ftp://x"}, "models[0].base_url: "),
        ({"base_url": "https://key@x"}, "models[0].base_url: "),
        ({"api_key": "absent"}, "there is no key of that name"),
        ({"api_key_file": "/nowhere"}, "models[0].api_key_file: cannot be read"),
        ({"api_key": "a", "api_key_file": "b"}, "models[0]: "),
        ({"aliases": ["m"]}, "the name m is there twice"),
        ({"secret": "x"}, "models[0]: Additional properties"),
        ({"provider": "azure-openai", "api_key": "openai"}, "models[0].base_url: is required"),
        ({"provider": "openai", "model": "x", "capabilities": ["resume_text"]},
         "openai cannot resume_text"),
    ],
)  # fmt: skip
def test_bad_routes_are_refused_with_their_path(tmp_path, model, problem):
    good = {"name": "m", "provider": "deepseek", "model": "deepseek-v4-flash"}
    assert problem in "\n".join(problems(routes, tmp_path, {**good, **model}))


@pytest.mark.parametrize("key", ["sk-0123456789abcdef", "sk-PROJ_0123456789abcdef"])
def test_a_key_in_place_of_its_name_is_not_repeated(tmp_path, key):
    for more in ({"api_key": key}, {"api_key": key, "api_key_file": "b"}, {"api_key": [key]}):
        entry = {"name": "m", "provider": "openai", "model": "x", **more}
        assert key not in "\n".join(problems(routes, tmp_path, entry, keys=set()))


def test_plain_http_only_on_this_machine_or_when_asked_for(tmp_path):
    entry = {"name": "m", "provider": "openai", "model": "x"}
    for url, more in (
        ("http://127.0.0.1:8400", {}),
        ("http://[::1]:8400", {}),
        ("http://localhost", {}),
        ("http://vllm.svc:8000", {"plaintext": True}),
    ):
        assert routes(tmp_path, {**entry, "base_url": url, **more})["m"].base_url == url
    for url in ("http://127.0.0.1.evil.example", "http://localhost.evil.example"):
        assert problems(routes, tmp_path, {**entry, "base_url": url})


def test_keys_from_a_file_make_a_pool_named_by_the_file(tmp_path):
    (tmp_path / "keys").write_text("sk-1\nsk-2\n")
    entry = {"provider": "openai", "model": "x", "api_key_file": "keys"}
    found = routes(tmp_path, {"name": "a", **entry}, {"name": "b", **entry})
    assert found["a"].key_file == tmp_path / "keys"
    assert found["a"].account == found["b"].account


def test_settings_check_the_files_they_name(tmp_path):
    path = tmp_path / "routes.yaml"
    path.write_text("models: [{name: m, provider: deepseek, model: nothing}]")
    environ = {"C_MODELS_FILE": str(path), "C_API_KEYS": "deepseek=sk-very-secret"}
    with pytest.raises(SettingsError) as caught:
        load(Settings, "C_", environ)
    assert "deepseek has only" in str(caught.value)
    path.write_text("models: [{name: m, provider: deepseek, model: deepseek-v4-pro}]")
    settings = load(Settings, "C_", environ)
    assert "sk-very-secret" not in repr(settings)
    assert "sk-very-secret" not in repr(settings.routes())


@pytest.mark.parametrize(
    ("mask", "kinds"),
    [
        (None, {"email", "phone", "card", "cn-id", "secret"}),
        ("email, cn-id", {"email", "cn-id"}),
        ("none", set()),
    ],
)
def test_settings_say_what_is_masked(tmp_path, mask, kinds):
    path = tmp_path / "routes.yaml"
    path.write_text(
        "models: [{name: m, provider: simulator, model: m, base_url: 'http://[::1]:1'}]"
    )
    environ = {"C_MODELS_FILE": str(path), "C_API_KEYS": "simulator=x"}
    settings = load(Settings, "C_", environ if mask is None else {**environ, "C_MASK": mask})
    assert {NAMES[kind] for kind in settings.masked_kinds()} == kinds


@pytest.mark.parametrize("mask", ["", "none,email", "e-mail"])
def test_masking_is_not_switched_off_by_mistake(tmp_path, mask):
    path = tmp_path / "routes.yaml"
    path.write_text("models: []")
    with pytest.raises(SettingsError) as caught:
        load(Settings, "C_", {"C_MODELS_FILE": str(path), "C_MASK": mask})
    assert "MASK must be" in str(caught.value)
