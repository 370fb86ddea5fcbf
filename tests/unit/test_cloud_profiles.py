"""The profiles that ship with the service are whole and plausible; bad ones are refused."""

import datetime
import json
import re
from pathlib import Path

import pytest
import yaml

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.chassis.settings import Secret
from services.cloud_proxy.configuration import BadConfiguration
from services.cloud_proxy.dialects.requests import thinks
from services.cloud_proxy.profile_files import (
    PROFILES,
    built_in_profiles,
    load_profiles,
    parse_profile,
)
from services.cloud_proxy.profiles import REFUSED
from services.cloud_proxy.providers_support import PARAMETERS, models_of
from services.cloud_proxy.settings import Settings
from tests.support.openai_chat import CODEC, asked
from tests.support.provider import route
from tests.support.recordings import route_to

BUILT_IN = built_in_profiles()
MODELS = [(profile, model) for profile in BUILT_IN.values() for model in models_of(profile)]
PRICED = [(profile, model, model.prices) for profile, model in MODELS if model.prices]
# Beyond this it is a slip of units: USD 1,000 for a million tokens.
DEAREST = 1_000_000_000
KEYS = Secret("deepseek=sk-1 openai=sk-2")
# Models that reason and cannot be told how much.
ALWAYS_THE_SAME = {
    ("hunyuan", "hunyuan-2.0-thinking-20251109"),
    ("minimax", "MiniMax-M2.5"),
    ("minimax", "MiniMax-M2.7"),
    ("minimax", "MiniMax-M2.7-highspeed"),
}
# As the specification of the cloud proxy names them.
EXPECTED = {
    "openai", "azure-openai", "deepseek", "qwen", "zhipu", "zai", "moonshot", "mistral", "groq",
    "together", "fireworks", "openrouter", "xai", "vllm", "sglang", "lm-studio", "siliconflow",
    "volcengine-ark", "minimax", "baichuan", "yi", "stepfun",
}  # fmt: skip


def ids(cases):
    return ["-".join(part.name for part in case[:2]) for case in cases]


def test_every_file_is_a_profile_of_its_name():
    files = {path.stem for path in PROFILES.glob("*.yaml")}
    assert files == set(BUILT_IN)
    assert len(files) >= 25
    assert sum(profile.dialect == "openai_chat" for profile in BUILT_IN.values()) >= 30


def test_every_provider_that_was_promised_is_there():
    assert set(BUILT_IN) >= EXPECTED


def test_every_real_provider_has_documentation_and_nothing_else_does():
    for profile in BUILT_IN.values():
        assert bool(profile.documentation) is not profile.simulated, profile.name
        assert profile.simulated or profile.documentation.startswith("https://"), profile.name


def test_keys_travel_encrypted_unless_they_stay_on_this_machine():
    for profile in BUILT_IN.values():
        plain = profile.base_url.startswith("http:")
        assert not plain or profile.base_url.startswith("http://127.0.0.1:"), profile.name


def test_base_url_and_path_together_name_each_version_once():
    for profile in BUILT_IN.values():
        assert not re.search(r"/v\d+$", profile.base_url), profile.name


def test_enough_real_providers_list_models_with_prices():
    listed = {profile.name for profile, _ in MODELS if not profile.simulated}
    priced = {profile.name for profile, _, _ in PRICED if not profile.simulated}
    assert len(listed) >= 35
    assert len(priced) >= 25


@pytest.mark.parametrize(("profile", "model", "prices"), PRICED, ids=ids(PRICED))
def test_prices_have_a_source_and_a_date_and_are_plausible(profile, model, prices):
    assert datetime.date.fromisoformat(prices.as_of) <= datetime.date.today()
    assert profile.simulated or "https://" in prices.source
    assert 0 <= prices.cached_input <= prices.input < DEAREST
    assert prices.input > 0
    assert prices.output < DEAREST
    assert (prices.output > 0) is ("generate" in model.capabilities)
    # Storing costs up to twice as much as reading.
    assert prices.cache_write is None or prices.cache_write <= 2 * prices.input
    long = prices.long_prompt
    if long is not None:
        assert long.over < model.context_length
        assert long.cached_input <= long.input
        assert prices.input <= long.input < DEAREST
        assert prices.output <= long.output < DEAREST


@pytest.mark.parametrize(("profile", "model"), MODELS, ids=ids(MODELS))
def test_models_are_plausible(profile, model):
    assert 0 <= model.context_length <= 10_000_000
    assert model.max_output <= (model.context_length or model.max_output)
    assert "images" not in model.capabilities or profile.content == "parts"
    assert "structured_output" not in model.capabilities or profile.response_formats


@pytest.mark.parametrize(("profile", "model"), MODELS, ids=ids(MODELS))
def test_models_that_reason_can_be_told_how_much(profile, model):
    can_be_told = bool({**profile.reasoning.effort, **model.effort})
    if "reasoning" not in model.capabilities:
        assert not model.effort
    elif (profile.name, model.name) in ALWAYS_THE_SAME:
        assert not can_be_told
    else:
        assert can_be_told


def test_exceptions_name_models_that_exist():
    assert {(profile.name, model.name) for profile, model in MODELS} >= ALWAYS_THE_SAME


def test_every_parameter_rule_is_about_a_parameter_that_exists():
    for profile in BUILT_IN.values():
        for rules in (profile.models[""].parameters, *(m.parameters for m in models_of(profile))):
            assert set(rules) <= set(PARAMETERS), profile.name
            for name, rule in rules.items():
                low, high = rule.minimum, rule.maximum
                assert low is None or high is None or low <= high, (profile.name, name)
        assert profile.reasoning.ignores <= set(profile.models[""].parameters), profile.name


def test_counting_needs_a_place_for_the_number():
    for profile in BUILT_IN.values():
        if profile.dialect == "openai_chat":
            assert bool(profile.paths.count) is bool(profile.paths.count_result), profile.name


def test_default_reasoning_is_known_where_it_changes_what_is_sent(tmp_path):
    assert thinks(asked(), route(tmp_path, "moonshot", "kimi-k2.6"))
    assert not thinks(asked(), route(tmp_path, "moonshot", "moonshot-v1-8k"))
    assert not thinks(asked(), route(tmp_path, "openai", "gpt-5.4"))


# Inside every range that a profile states.
ASKED = {
    "max_tokens": 7, "temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.1,
    "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1, "seed": 3,
    "stop": ["x"], "n": 2, "ignore_eos": True, "min_tokens": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    "name", sorted(n for n, p in BUILT_IN.items() if p.dialect == "openai_chat")
)
def test_each_parameter_is_sent_as_its_provider_calls_it_or_refused(name):
    profile = BUILT_IN[name]
    model = next((m.name for m in models_of(profile) if "generate" in m.capabilities), "any")
    there = route_to(name, model)
    for parameter, value in ASKED.items():
        request = asked(sampling=pb.Sampling(**{parameter: value}))
        rule = there.model.parameters.get(parameter, REFUSED)
        if rule.rule == "refuse":
            with pytest.raises(Fault) as caught:
                CODEC.encode_request(request, there)
            assert caught.value.metadata["feature"] == f"sampling.{parameter}"
            continue
        encoded = CODEC.encode_request(request, there)
        body = json.loads(encoded.body)
        assert encoded.path.startswith("/")
        if rule.rule == "drop" or parameter in encoded.dropped:
            assert encoded.dropped == (parameter,)
            assert rule.name not in body
        else:
            assert body[rule.name] == value
    assert "max_tokens" in there.model.parameters, "nothing would bound what an answer costs"


GOOD = {
    "name": "river-ai",
    "dialect": "openai_chat",
    "summary": "River",
    "base_url": "https://api.river.example",
    "paths": {"chat": "/v1/chat/completions"},
    "auth": {"scheme": "bearer"},
    "parameters": {"max_tokens": {"send": "max_tokens"}, "seed": "drop", "n": "refuse"},
    "models": {"river-1": {"context_length": 8192}},
}


def problems(document):
    with pytest.raises(BadConfiguration) as caught:
        parse_profile(document, "river.yaml")
    return caught.value.problems


def test_a_short_profile_is_enough():
    profile = parse_profile(GOOD, "river.yaml")
    assert profile.models["river-1"].context_length == 8192
    assert profile.paths.stream == "/v1/chat/completions"
    assert profile.tool_choice == {"auto", "none", "required", "named"}
    assert profile.continuation is None
    assert profile.limits == "account"


def test_continuation_may_add_to_the_body_and_tool_choice_may_be_less():
    more = {
        "continuation": {"body": {"continue_final_message": True}},
        "tool_choice": ["auto", "none"],
    }
    profile = parse_profile({**GOOD, **more}, "river.yaml")
    assert profile.continuation.flag == profile.continuation.path == ""
    assert profile.continuation.body == {"continue_final_message": True}
    assert profile.tool_choice == {"auto", "none"}


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"name": "River AI"}, "name"),
        ({"dialect": "smoke_signals"}, "dialect"),
        ({"documentation": "see the wiki"}, "documentation"),
        ({"base_url": "https://key@river.example"}, "base_url"),
        ({"paths": {"chat": "v1/chat"}}, "paths.chat"),
        ({"paths": {"chat": "/c", "count": "/n", "count_result": "data."}}, "paths.count_result"),
        ({"auth": {"scheme": "header"}}, "auth"),
        ({"headers": {"X-A": "two\nlines"}}, "headers.X-A"),
        ({"usage": {"reasoning": "maybe"}}, "usage.reasoning"),
        ({"finish_reasons": {"odd": "perhaps"}}, "finish_reasons.odd"),
        ({"parameters": {"warmth": "drop"}}, "parameters"),
        ({"parameters": {"seed": {"send": ""}}}, "parameters.seed"),
        ({"reasoning": {"effort": {"utmost": {}}}}, "reasoning.effort"),
        ({"continuation": {"body": True}}, "continuation.body"),
        ({"tool_choice": ["none"]}, "tool_choice"),
        ({"limits": "planet"}, "limits"),
        ({"drain_seconds": 31}, "drain_seconds"),
        ({"models": {"m": {"context_length": 0}}}, "models.m.context_length"),
        ({"models": {"m": {"capabilities": ["fly"]}}}, "models.m.capabilities[0]"),
        ({"models": {"m": {"prices": {"input": 1}}}}, "models.m.prices"),
        ({"models": {"m": {"capabilities": ["embed"]}}}, "models.m.capabilities"),
        ({"models": {"m": {"capabilities": ["resume_text"]}}}, "models.m.capabilities"),
        ({"models": {}}, "models"),
        ({"colour": "blue"}, "document"),
    ],
)
def test_a_bad_profile_is_refused_with_the_path_of_the_fault(change, path):
    found = problems({**GOOD, **change})
    assert any(problem.startswith(f"river.yaml: {path}: ") for problem in found), found


def test_all_faults_of_all_files_are_named_at_once(tmp_path):
    first = {**GOOD, "limits": "planet", "terminal": "never", "paths": {"chat": "nowhere"}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(first))
    (tmp_path / "b.yaml").write_text("models: [")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(GOOD))
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(GOOD))
    with pytest.raises(BadConfiguration) as caught:
        load_profiles(tmp_path)
    starts = [":".join(problem.split(":")[:2]) for problem in caught.value.problems]
    assert starts == ["a.yaml: limits", "a.yaml: paths.chat", "a.yaml: terminal",
                      "b.yaml: is not valid YAML in line 1", "d.yaml: name"]  # fmt: skip


def test_a_profile_in_a_users_directory_replaces_the_built_in_of_its_name(tmp_path):
    own = tmp_path / "profiles"
    own.mkdir()
    document = yaml.safe_load((PROFILES / "deepseek.yaml").read_text())
    document["base_url"] = "https://deepseek.corp.example"
    (own / "deepseek.yaml").write_text(yaml.safe_dump(document))
    routes = tmp_path / "routes.yaml"
    routes.write_text(
        "models:\n"
        "  - {name: a, provider: deepseek, model: deepseek-v4-pro}\n"
        "  - {name: b, provider: openai, model: gpt-5.4}\n"
    )
    settings = Settings(models_file=routes, profiles_dir=own, api_keys=KEYS)
    found = settings.routes()
    assert found["a"].base_url == "https://deepseek.corp.example"
    assert found["b"].base_url == "https://api.openai.com"
    assert BUILT_IN["deepseek"].base_url == "https://api.deepseek.com"


def test_the_profiles_ship_with_the_package():
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '"profiles/*.yaml"' in pyproject
