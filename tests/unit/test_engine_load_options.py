"""What a model loaded at run time takes over from the settings, and what a request may say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from anabranch.v1 import model_admin_pb2 as pb
from services.chassis.errors import Fault
from services.local_engine.load_options import ALLOWED_ARGUMENTS, settings_for
from services.local_engine.on_vllm.options import OWN_ARGUMENTS
from services.local_engine.settings import Settings


def settings(**changes: Any) -> Settings:
    return Settings(served_model_name="river", **changes)


def load(own: Settings, name: str = "lake", *, hub: bool = False, **options: Any) -> Settings:
    asked = pb.LoadModelRequest(name=name, source="/weights", options=pb.LoadOptions(**options))
    return settings_for(own, asked, hub=hub)


def violations(**options: Any) -> list[str]:
    with pytest.raises(Fault) as refused:
        load(settings(), **options)
    return [f"{one.field} {one.description}" for one in refused.value.violations]


@pytest.mark.parametrize("name", ["river", "lake"])
def test_code_that_comes_with_the_first_model_is_trusted_for_no_other(name: str) -> None:
    own = settings(trust_remote_code=True)
    assert not load(own, name).trust_remote_code


def test_no_argument_lets_a_request_trust_code() -> None:
    (told,) = violations(vllm_args='{"trust_remote_code": true}')
    assert "trust_remote_code" in told


OF_RIVER = {
    "tokenizer": "/weights/river",
    "chat_template": "/weights/river.jinja",
    "tool_parser": "hermes",
    "reasoning_parser": "qwen3",
    "speculative": '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}',
}


def test_what_belongs_to_the_first_model_goes_to_its_next_version_and_to_no_other_model() -> None:
    arguments = '{"hf_overrides": {"rope_theta": 1}, "enable_expert_parallel": true}'
    own = settings(**OF_RIVER, vllm_args=arguments)
    swapped, other = load(own, "river"), load(own, "lake")
    for field, value in OF_RIVER.items():
        assert getattr(swapped, field) == value
        assert getattr(other, field) == ""
    assert json.loads(swapped.vllm_args) == json.loads(arguments)
    assert json.loads(other.vllm_args) == {"enable_expert_parallel": True}


def test_another_model_has_the_parsers_that_its_request_names() -> None:
    found = load(settings(tool_parser="hermes"), tool_parser="mistral", reasoning_parser="qwen3")
    assert (found.tool_parser, found.reasoning_parser) == ("mistral", "qwen3")


GIVEN = {
    "block_size": ("block_size", 32),
    "cpu_offload_gb": ("cpu_offload_gib", 4),
    "data_parallel_size": ("data_parallel_size", 2),
    "enable_prefix_caching": ("prefix_caching", False),
    "kv_cache_dtype": ("kv_cache_dtype", "fp8"),
}


@pytest.mark.parametrize("name", sorted(ALLOWED_ARGUMENTS))
def test_every_argument_that_a_request_may_give_is_taken(name: str) -> None:
    """The engine sets some itself: those are taken as the settings that stand for them."""
    setting, value = GIVEN.get(name, ("", 1))
    found = load(settings(), vllm_args=json.dumps({name: value}))
    if setting:
        assert getattr(found, setting) == value
        assert not found.vllm_args
    else:
        assert json.loads(found.vllm_args) == {name: value}
    assert (name in OWN_ARGUMENTS) == bool(setting)


def test_how_many_images_a_request_may_hold_is_a_setting_alone() -> None:
    (told,) = violations(vllm_args='{"limit_mm_per_prompt": {"image": 100}}')
    assert "limit_mm_per_prompt" in told


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ('{"block_size": "16"}', "block_size that is no int"),
        ('{"block_size": -1}', "from 0 to 1024"),
        ('{"cpu_offload_gb": NaN}', "cpu_offload_gb that is no float"),
        ('{"enable_prefix_caching": 1}', "no bool"),
        ('{"kv_cache_dtype": null}', "no str"),
        ('{"hf_overrides": {}}', "may not hold hf_overrides"),
        ("[1]", "must be a JSON object"),
        ("{", "is no JSON"),
        ("[" * 10_000, "nested too deeply"),
        ('{"swap_space": "' + "x" * 20_000 + '"}', "16384 characters at most"),
    ],
)
def test_arguments_that_cannot_be_are_named_with_what_is_wrong(arguments: str, why: str) -> None:
    (told,) = violations(vllm_args=arguments)
    assert why in told


def test_from_the_hub_only_safetensors_are_read() -> None:
    assert load(settings(), hub=True).load_format == "safetensors"
    assert load(settings()).load_format == ""
    assert load(settings(load_format="runai_streamer"), hub=True).load_format == "runai_streamer"
