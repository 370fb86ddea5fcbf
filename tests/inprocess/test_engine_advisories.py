"""Advisories of vLLM, each held by what is built here; see docs/security/engine-advisories.md.

Those that concern structured output are tried on the real engine, in test_structured_output.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.chassis.settings import load
from services.local_engine.app import make_engine
from services.local_engine.images.addresses import Place
from services.local_engine.images.limits import ImageLimits, violations_of
from services.local_engine.images.reader import ImageReader
from services.local_engine.on_vllm.arguments import engine_arguments
from services.local_engine.on_vllm.options import VllmOptions, further_arguments
from services.local_engine.settings import Settings
from tests.inprocess.test_image_fetcher import PICTURE, fetching, read
from tests.inprocess.test_local_engine import engine, refusal, request
from tests.support import tls
from tests.support.pictures import linked, user
from tests.support.waiting import BOUND_S


def fields_of(message: Descriptor, seen: set[str] | None = None) -> Iterator[FieldDescriptor]:
    """Every field of a message and of those within it."""
    seen = set() if seen is None else seen
    if message.full_name in seen or message.full_name.startswith("google."):
        return
    seen.add(message.full_name)
    for field in message.fields:
        yield field
        if field.message_type is not None:
            yield from fields_of(field.message_type, seen)


FIELDS = {field.name for field in fields_of(pb.GenerateRequest.DESCRIPTOR)}


async def refused(**fields):
    async with engine() as caller:
        call = caller.stub.Generate(request(**fields), metadata=caller.metadata, timeout=BOUND_S)
        fault = await refusal(call)
        await caller.generate()  # and goes on
    return fault


async def test_cve_2026_34756_a_huge_n_is_refused_before_anything_is_allocated():
    fault = await refused(sampling={"n": 2**31 - 1})
    assert fault.code == grpc.StatusCode.INVALID_ARGUMENT
    assert [v.field for v in fault.violations] == ["sampling.n"]


async def test_too_many_logprobs_and_stop_strings_are_refused_together():
    fault = await refused(sampling={"logprobs": 1000, "stop": ["x"] * 1000})
    assert [v.field for v in fault.violations] == ["sampling.logprobs", "sampling.stop"]


def test_cve_2026_73559_a_request_has_one_prompt():
    for name in ("prompt", "messages", "prompt_token_ids"):
        field = pb.GenerateRequest.DESCRIPTOR.fields_by_name[name]
        several = field.is_repeated if hasattr(field, "is_repeated") else field.label == 3
        assert several == (name != "prompt")
        assert (field.message_type is not None) == (name == "messages")


@pytest.mark.parametrize("word", ["template", "kwargs", "extra"])
def test_cve_2025_62426_callers_supply_no_template_nor_arguments_of_one(word):
    assert [name for name in FIELDS if word in name] == []


def test_cve_2025_62164_callers_supply_no_tensors():
    assert [name for name in FIELDS if "embed" in name or "tensor" in name] == []
    assert "enable_prompt_embeds" not in engine_arguments(VllmOptions("m", "m"), is_cpu=True)


@pytest.mark.parametrize(
    "name",
    [
        "bad_words",  # CVE-2026-93989
        "allowed_token_ids",  # CVE-2026-93840
        "stop_token_ids",  # CVE-2026-116181
        "logprob_token_ids",  # CVE-2026-116173
        "kv_transfer_params",  # CVE-2026-94626
    ],
)
def test_cve_2026_93989_callers_supply_no_token_ids_that_become_indices(name):
    assert name not in FIELDS


async def test_a_prompt_s_token_ids_are_within_the_vocabulary():
    fault = await refused(prompt_token_ids=[5, 2**31 - 1])
    assert [v.field for v in fault.violations] == ["prompt_token_ids"]


@pytest.mark.parametrize(
    "uri",
    [
        "http://images.example.org/a.png",
        "https://169.254.169.254/latest",
        "https://images.example.org@169.254.169.254/latest",
        "file:///etc/passwd",
    ],
)
def test_cve_2025_6242_an_address_that_is_not_on_the_list_is_refused_unread(uri):
    limits = ImageLimits(places=(Place.parse("images.example.org"),))
    (wrong,) = violations_of(looking_at(uri), limits, 1)
    assert wrong.field == "messages[0].content[0].image.uri"
    # And not because everything is.
    assert violations_of(looking_at("https://images.example.org/a.png"), limits, 1) == []


async def test_cve_2025_6242_an_allowed_host_cannot_send_the_engine_elsewhere(tmp_path):
    certificates = tls.made(tmp_path)
    async with fetching(certificates) as (serving, fetcher):
        place = Place.parse(f"localhost:{serving.port}")
        reader = ImageReader(ImageLimits(places=(place,)), fetcher)
        (picture,) = await read(reader, looking_at(serving.uri("/picture")))
        assert picture.data == PICTURE
        with pytest.raises(Fault, match="could not be fetched"):
            await read(reader, looking_at(serving.uri("/moved")))
        assert serving.asked == ["/picture", "/moved"]  # whose answer leads to /picture
    async with fetching(certificates, networks=()) as (serving, fetcher):
        place = Place.parse(f"localhost:{serving.port}")
        reader = ImageReader(ImageLimits(places=(place,)), fetcher)
        with pytest.raises(Fault, match="could not be fetched"):
            await read(reader, looking_at(serving.uri("/picture")))
        assert serving.asked == []  # a name on the list, of an address inside


def looking_at(uri: str) -> pb.GenerateRequest:
    return pb.GenerateRequest(messages=[user(linked(uri))])


async def test_cve_2025_48956_oversize_headers_end_their_call_only():
    async with engine() as caller:
        large = [*caller.metadata, ("x-large", "x" * 1_000_000)]
        with pytest.raises(grpc.aio.AioRpcError):
            await caller.stub.Generate(request(), metadata=large, timeout=BOUND_S)
        await caller.generate()


def test_cve_2025_66448_code_that_comes_with_a_checkpoint_is_not_run():
    for is_cpu in (True, False):
        assert engine_arguments(VllmOptions("m", "m"), is_cpu=is_cpu)["trust_remote_code"] is False
    with pytest.raises(ValueError, match="may not hold trust_remote_code"):
        further_arguments('{"trust_remote_code": true}')


def test_cve_2026_22807_only_its_own_setting_lets_a_checkpoint_s_code_run():
    prefix = "ANABRANCH_ENGINE_"
    default = make_engine(load(Settings, prefix, {}))
    trusting = make_engine(load(Settings, prefix, {prefix + "TRUST_REMOTE_CODE": "true"}))
    trusts = [
        engine_arguments(chosen._options, is_cpu=True)["trust_remote_code"]  # type: ignore[attr-defined]
        for chosen in (default, trusting)
    ]
    assert trusts == [False, True]


def test_cve_2025_29770_the_grammar_backend_is_not_for_vllm_s_arguments_to_choose():
    with pytest.raises(ValueError, match="may not hold structured_outputs_config"):
        further_arguments('{"structured_outputs_config": {"backend": "outlines"}}')
