"""`anabranch providers` on the real profiles: what it lists, shows and refuses."""

import json
from importlib.metadata import EntryPoint

import click
import pytest
import yaml
from click.testing import CliRunner

from anabranch.cli import main
from anabranch.cli.extensions import ENTRY_POINTS, ExtensibleGroup
from services.cloud_proxy.profile_files import PROFILES, built_in_profiles
from services.cloud_proxy.providers_command import providers
from services.cloud_proxy.providers_support import PARAMETERS, dollars

RIVER = """
name: river-ai
dialect: openai_chat
summary: River
documentation: https://docs.river.example
base_url: https://api.river.example
paths: {chat: /v1/chat/completions}
auth: {scheme: bearer}
parameters: {max_tokens: {send: max_tokens}}
models: {river-1: {context_length: 8192}}
"""
ROUTES = "models: [{name: river, provider: river-ai, model: river-1}]"


def run(*arguments, fails_with=0):
    result = CliRunner().invoke(providers, [str(a) for a in arguments])
    assert result.exit_code == fails_with, result.output
    return result


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def line_of(result, name):
    (line,) = (x for x in result.stdout.splitlines() if x.split()[0] == name)
    return line


# The list


def test_the_table_has_every_provider_with_what_it_can_do():
    result = run()
    for name, profile in built_in_profiles().items():
        line = line_of(result, name)
        assert profile.dialect in line
        assert (profile.base_url or "of the route") in line
    assert "count" in line_of(result, "moonshot")
    assert "continuation" in line_of(result, "deepseek")
    assert "images" not in line_of(result, "deepseek")
    assert "2026-05-22" in line_of(result, "deepseek")
    assert "tools?" in line_of(result, "vllm")
    assert "routes file" in result.stderr


def test_the_list_as_json():
    found = {entry["name"]: entry for entry in json.loads(run("--json").stdout)}
    assert set(found) == set(built_in_profiles())
    deepseek = found["deepseek"]
    assert deepseek["base_url"] == "https://api.deepseek.com"
    assert deepseek["models"] == 2
    assert deepseek["prices_as_of"] == ["2026-05-22", "2026-05-22"]
    assert deepseek["supports"] == {
        "streaming": "yes",
        "tools": "yes",
        "images": "no",
        "structured_output": "yes",
        "reasoning": "yes",
        "embed": "no",
        "count": "no",
        "continuation": "yes",
    }
    assert found["openai"]["supports"]["embed"] == "yes"
    assert found["vllm"]["supports"]["continuation"] == "route"
    assert found["vllm"]["prices_as_of"] is None


def test_the_list_as_markdown_links_each_documentation():
    lines = run("--markdown").stdout.splitlines()
    assert len(lines) == 2 + len(built_in_profiles())
    deepseek = built_in_profiles()["deepseek"]
    assert any(line.startswith(f"| [deepseek]({deepseek.documentation}) |") for line in lines)


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_users_directory_adds_and_replaces(tmp_path, place):
    written(tmp_path / "river.yaml", RIVER)
    own = (PROFILES / "openai.yaml").read_text().replace("api.openai.com", "openai.corp.example")
    written(tmp_path / "openai.yaml", own)
    option = ("--profiles-dir", tmp_path)
    assert "https://openai.corp.example" in line_of(run(*option), "openai")
    for name, base_url in (
        ("river-ai", "https://api.river.example"),
        ("openai", "https://openai.corp.example"),
    ):
        shown = ("show", name, "--json")
        result = run(*option, *shown) if place == "before" else run(*shown, *option)
        assert json.loads(result.stdout)["base_url"] == base_url


def test_a_users_bad_directory_is_refused_with_every_fault(tmp_path):
    written(tmp_path / "a.yaml", RIVER + "colour: blue\n")
    written(tmp_path / "b.yaml", RIVER.replace("bearer", "handshake"))
    result = run("--profiles-dir", tmp_path, fails_with=4)
    assert result.stdout == ""
    assert "a.yaml: document: " in result.stderr
    assert "b.yaml: auth.scheme: " in result.stderr


# One provider


@pytest.mark.parametrize("name", sorted(built_in_profiles()))
def test_every_provider_can_be_shown_both_ways(name):
    profile = built_in_profiles()[name]
    shown = json.loads(run("show", name, "--json").stdout)
    assert shown["name"] == name
    assert {m["name"] for m in shown["models"]} == {m for m in profile.models if m}
    assert {*shown["parameters"], *shown["refused_parameters"]} == set(PARAMETERS)
    text = run("show", name).stdout
    for model in shown["models"]:
        assert model["name"] in text


def test_a_provider_is_shown_with_ranges_prices_and_quirks():
    text = run("show", "deepseek").stdout
    assert "0 to 2" in text
    assert "up to 16" in text
    assert "refused: top_k, min_p, repetition_penalty, seed, n, ignore_eos, min_tokens" in text
    assert "insufficient_system_resource → error" in text
    assert "$0.14" in text
    assert "$0.0028" in text
    assert "flag prefix, path /beta/chat/completions" in text
    openai = run("show", "openai").stdout
    assert "gpt-5.4: $5.00, $0.50, $22.50 beyond 272000 prompt tokens" in openai
    assert "gpt-5.5: stop is refused" in openai
    assert "gpt-5.5: temperature is left out" in openai
    assert "reasoning is added" in run("show", "xai").stdout
    assert "random_seed" in run("show", "mistral").stdout


def test_an_unknown_provider_is_answered_with_near_names():
    result = run("show", "deepsek", fails_with=2)
    assert "deepseek" in result.stderr


@pytest.mark.parametrize(
    ("micros", "text"),
    [(0, "$0.00"), (2_800, "$0.0028"), (140_000, "$0.14"), (3_000_000, "$3.00"),
     (12_500_001, "$12.500001"), (500_000, "$0.50")],
)  # fmt: skip
def test_prices_are_exact(micros, text):
    assert dollars(micros) == text


# Checks


def test_good_profiles_and_routes_pass_together_in_any_order(tmp_path):
    profile = written(tmp_path / "river-ai.yaml", RIVER)
    routes = written(tmp_path / "models.yaml", ROUTES)
    result = run("check", routes, profile)
    assert "river-ai.yaml: profile river-ai, 1 model: good" in result.stdout
    assert "models.yaml: routes to river: good" in result.stdout
    assert result.stderr == ""


def test_a_directory_is_checked_whole(tmp_path):
    written(tmp_path / "p" / "river-ai.yaml", RIVER)
    routes = written(tmp_path / "models.yaml", ROUTES)
    assert "routes to river" in run("check", tmp_path / "p", routes).stdout
    written(tmp_path / "p" / "second.yaml", RIVER)
    assert "river-ai is there twice" in run("check", tmp_path / "p", fails_with=4).stderr
    (tmp_path / "empty").mkdir()
    assert "holds no *.yaml" in run("check", tmp_path / "empty", fails_with=4).stderr


def test_the_built_in_profiles_pass():
    result = run("check", PROFILES)
    assert result.stdout.count("good") == len(built_in_profiles())


def test_every_fault_is_named_by_its_path(tmp_path):
    bad = written(
        tmp_path / "bad.yaml",
        RIVER.replace("/v1/chat", "v1/chat").replace("8192", "many") + "limits: planet\n",
    )
    broken = written(tmp_path / "broken.yaml", "name: [")
    routes = written(
        tmp_path / "models.yaml",
        "models:\n"
        "- {name: a, provider: nobody, model: x}\n"
        "- {name: b, provider: vllm, model: x}\n"
        "- {name: c, provider: deepseek, model: x, fallbacks: [d]}\n",
    )
    result = run("check", bad, broken, routes, fails_with=4)
    for fault in (
        "bad.yaml: limits: ",
        "bad.yaml: paths.chat: ",
        "bad.yaml: models.river-1.context_length: ",
        "broken.yaml: is not valid YAML",
        "models.yaml: models[0].provider: ",
        "models.yaml: models[1].base_url: ",
        "models.yaml: models[2].model: deepseek has only ",
    ):
        assert fault in result.stderr
    assert "Traceback" not in result.output


def test_a_document_that_is_no_mapping_is_refused(tmp_path):
    result = run("check", written(tmp_path / "list.yaml", "- 1"), fails_with=4)
    assert "list.yaml: document: " in result.stderr


def test_a_file_that_is_not_there_is_a_mistake_of_usage(tmp_path):
    run("check", tmp_path / "nothing.yaml", fails_with=2)
    run("check", fails_with=2)


def test_a_key_in_a_checked_file_is_not_repeated(tmp_path):
    key = "sk-live-0123456789abcdefghij"
    entry = {"name": "a", "provider": "openai", "model": "gpt-5.4", "api_key": key.upper()}
    for document in ({"models": [entry]}, {"models": [{**entry, "key": key}], "key": key}):
        result = run("check", written(tmp_path / "m.yaml", yaml.safe_dump(document)), fails_with=4)
        assert key not in result.output
        assert key.upper() not in result.output


# How the command line finds it


def declared(**values):
    return {n: EntryPoint(name=n, value=v, group=ENTRY_POINTS) for n, v in values.items()}


def group_with(points):
    group = ExtensibleGroup("anabranch", commands={"models": click.Command("models")})
    group.declared = lambda: points
    return group


def test_a_declared_command_is_found_and_listed():
    value = "services.cloud_proxy.providers_command:providers"
    group = group_with(declared(providers=value))
    context = click.Context(group)
    assert group.list_commands(context) == ["models", "providers"]
    assert group.get_command(context, "providers") is providers
    assert "List the cloud providers" in CliRunner().invoke(group, ["--help"]).stdout
    shown = CliRunner().invoke(group, ["providers", "show", "deepseek"])
    assert shown.exit_code == 0
    assert "deepseek-v4-pro" in shown.stdout


def test_what_is_not_installed_is_not_there():
    group = group_with(declared(providers="not_installed_here.command:providers"))
    context = click.Context(group)
    assert group.list_commands(context) == ["models"]
    result = CliRunner().invoke(group, ["providers"])
    assert result.exit_code == 2
    assert "No such command" in result.stderr
    assert CliRunner().invoke(group, ["--help"]).exit_code == 0


def test_nothing_is_loaded_for_commands_of_its_own():
    loaded = []

    class Watched(EntryPoint):
        def load(self):
            loaded.append(self.name)
            return super().load()

    point = Watched(name="providers", value="not_installed:x", group=ENTRY_POINTS)
    group = group_with({"providers": point})
    assert group.get_command(click.Context(group), "models") is group.commands["models"]
    assert loaded == []
    group.get_command(click.Context(group), "providers")
    assert loaded == ["providers"]


def test_its_own_commands_are_not_replaced():
    value = "services.cloud_proxy.providers_command:providers"
    group = group_with(declared(models=value))
    assert group.get_command(click.Context(group), "models") is group.commands["models"]


def test_an_entry_point_that_is_no_command_is_a_bug_that_shows():
    group = group_with(declared(odd="json:dumps"))
    with pytest.raises(TypeError, match="is no command"):
        group.get_command(click.Context(group), "odd")


def test_the_real_command_line_looks_for_declared_commands():
    assert isinstance(main, ExtensibleGroup)
