"""A vision model through the service, against vLLM itself offline; and what it will not look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from anabranch.v1 import errors_pb2, model_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.prompt_blocks import prompt_blocks
from tests.inprocess.test_image_fetcher import host
from tests.inprocess.test_local_engine import Caller, engine, refusal
from tests.support import tls
from tests.support.engines import MODEL
from tests.support.pictures import (
    animated,
    encoded,
    linked,
    part,
    png_that_says,
    user,
)
from tests.support.tiny_vision import IMAGE, PATCHES, make_tiny_vision_model
from tests.support.vision_reference import ask_vllm
from tests.support.waiting import BOUND_S
from tools.cluster.ports import free_port

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
]

RED, BLUE = encoded("red"), encoded("blue")
NAME = "tiny"
QUESTION = "What is it?"
LONG = "The river runs to the sea. " * 40
"""More than a block of the prefix cache."""
TOKENS = 12


def chat(*texts: str) -> str:
    """A prompt as the model's template makes it of one user's turn."""
    return f"<|im_start|>user\n{''.join(texts)}<|im_end|>\n<|im_start|>assistant\n"


CASES: dict[str, tuple[str, tuple[bytes, ...], int]] = {
    "red": (chat(IMAGE, QUESTION), (RED,), TOKENS),
    "blue": (chat(IMAGE, QUESTION), (BLUE,), TOKENS),
    "two": (chat(IMAGE, "or ", IMAGE, QUESTION), (RED, BLUE), TOKENS),
    "long red": (chat(IMAGE, LONG), (RED,), TOKENS),
    "long blue": (chat(IMAGE, LONG), (BLUE,), TOKENS),
    "text": (chat(QUESTION), (), TOKENS),
    "prompt": ("Once upon a time", (), TOKENS),
}


@dataclass
class Scene:
    """A running engine with the model, and what vLLM itself says to CASES."""

    caller: Caller
    expected: dict[str, Any]
    images: Any
    path: Any

    async def look(self, *parts: pb.ContentPart | str, **fields: Any) -> pb.GenerateResponse:
        return await self.ask(request(**self.fields(*parts, **fields)))

    async def ask(self, asked: pb.GenerateRequest) -> pb.GenerateResponse:
        call = self.caller.stub.Generate(asked, metadata=self.caller.metadata, timeout=BOUND_S)
        answer: pb.GenerateResponse = await call
        return answer

    def fields(self, *parts: pb.ContentPart | str, **fields: Any) -> dict[str, Any]:
        sampling = {"max_tokens": TOKENS, "ignore_eos": True, "temperature": 0.0}
        sampling |= fields.pop("sampling", {})
        return {"messages": [user(*parts)], "sampling": sampling, "model": NAME, **fields}

    async def refused(self, *parts: pb.ContentPart | str, **fields: Any) -> Any:
        asked = request(**self.fields(*parts, **fields))
        return await refusal(self.caller.stub.Generate(asked, metadata=self.caller.metadata))


def request(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(sampling=pb.Sampling(**fields.pop("sampling")), **fields)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory):
    if not MODEL.is_dir():
        pytest.skip("no model: run tools/fetch_model.py")
    directory = tmp_path_factory.mktemp("vision")
    make_tiny_vision_model(directory / NAME)
    expected = dict(zip(CASES, ask_vllm(directory / NAME, list(CASES.values())), strict=True))
    certificates = tls.made(directory / "certificates")
    async with (
        host(certificates) as images,
        engine(
            engine="vllm",
            model=str(directory / NAME),
            served_model_name=NAME,
            step_model="",
            max_num_seqs=8,
            max_model_len=1024,
            cpu_kv_cache_gib=1,
            images=3,
            image_pixels=1_000_000,
            image_urls=(f"localhost:{images.port}", "localhost"),
            image_networks=("127.0.0.0/8", "::1/128"),
            image_ca_file=certificates / "ca.pem",
        ) as caller,
    ):
        yield Scene(caller, expected, images, directory / NAME)


def outcome(answer: pb.GenerateResponse) -> tuple[int, list[int]]:
    """The prompt's length and the answer's tokens."""
    return answer.usage.prompt_tokens, list(answer.choices[0].token_ids)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("red", (part(RED), QUESTION)),
        ("blue", (part(BLUE), QUESTION)),
        ("two", (part(RED), "or ", part(BLUE), QUESTION)),
        ("text", (QUESTION,)),
    ],
)
async def test_it_answers_what_vllm_itself_answers_and_counts_as_it_does(scene, name, parts):
    length, tokens, first = scene.expected[name]
    answer = await scene.look(*parts, sampling={"logprobs": 0})
    assert outcome(answer) == (length, tokens)
    told = answer.choices[0].logprobs[0].candidates[0].logprob
    assert told == pytest.approx(first, abs=1e-3)
    counted = await scene.caller.stub.CountTokens(
        model_pb2.CountTokensRequest(model=NAME, request=request(**scene.fields(*parts))),
        metadata=scene.caller.metadata,
    )
    assert counted.prompt_tokens == length


async def test_what_it_sees_changes_what_it_says(scene):
    assert scene.expected["red"][1] != scene.expected["blue"][1]
    assert scene.expected["red"][0] > PATCHES


async def test_a_text_prompt_and_its_tokens_are_answered_as_ever(scene):
    length, tokens, _ = scene.expected["prompt"]
    fields = scene.fields()
    del fields["messages"]
    answer = await scene.ask(request(**fields, prompt="Once upon a time"))
    assert outcome(answer) == (length, tokens)
    single = await scene.ask(request(**fields, prompt_token_ids=[5]))
    assert outcome(single)[0] == 1
    assert len(outcome(single)[1]) == TOKENS


async def test_equal_texts_of_different_images_share_no_cache(scene):
    for name, picture, cached in (
        ("long red", RED, False),
        ("long blue", BLUE, False),
        ("long red", RED, True),
        ("long blue", BLUE, True),
    ):
        answer = await scene.look(part(picture), LONG)
        assert outcome(answer) == tuple(scene.expected[name][:2])
        assert (answer.usage.cached_prompt_tokens > 0) is cached


async def test_routers_are_told_nothing_of_what_the_cache_holds_behind_an_image(scene):
    asked = request(**scene.fields(part(RED), LONG * 2))
    await scene.caller.session(asked)
    messages = await scene.caller.session(asked)
    told = {name for m in messages for name in m.prefix_cache.stored}
    assert len(prompt_blocks(asked)) > 3
    assert not told & set(prompt_blocks(asked))


@pytest.mark.parametrize("cut", [1, 5, 11])
async def test_a_resumed_answer_about_an_image_goes_on_exactly(scene, cut):
    _, tokens, _ = scene.expected["two"]
    rest = await scene.look(
        part(RED),
        "or ",
        part(BLUE),
        QUESTION,
        sampling={"max_tokens": TOKENS - cut},
        continuation=pb.Continuation(token_ids=tokens[:cut]),
    )
    assert list(rest.choices[0].token_ids) == tokens[cut:]
    assert rest.usage.prompt_tokens == scene.expected["two"][0]


async def test_two_choices_see_the_same_image(scene):
    # Of one candidate each time: vLLM takes greedy sampling for one choice only.
    alike = {"n": 2, "temperature": 1.0, "top_k": 1}
    answer = await scene.look(part(RED), QUESTION, sampling=alike)
    assert [list(c.token_ids) for c in answer.choices] == [scene.expected["red"][1]] * 2


@pytest.mark.parametrize("media_type", ["image/png", "image/webp", "image/gif"])
async def test_formats_without_loss_show_the_same(scene, media_type):
    how: dict[str, Any] = {"lossless": True} if media_type == "image/webp" else {}
    answer = await scene.look(part(encoded("red", media_type, **how), media_type), QUESTION)
    assert outcome(answer) == tuple(scene.expected["red"][:2])


async def test_a_jpeg_is_read(scene):
    answer = await scene.look(part(encoded("red", "image/jpeg"), "image/jpeg"), QUESTION)
    assert answer.usage.prompt_tokens == scene.expected["red"][0]


async def test_of_an_animation_the_first_frame_is_seen(scene):
    answer = await scene.look(part(animated("red", "blue", "green"), "image/gif"), QUESTION)
    assert outcome(answer) == tuple(scene.expected["red"][:2])


async def test_what_is_transparent_is_seen_on_white(scene):
    clear = encoded((0, 255, 0, 0), mode="RGBA")
    seen = await scene.look(part(clear), QUESTION)
    white = await scene.look(part(encoded("white")), QUESTION)
    assert outcome(seen) == outcome(white)


async def test_an_image_by_its_address_is_seen_as_one_that_came_along(scene):
    answer = await scene.look(linked(scene.images.uri("/picture")), QUESTION)
    assert outcome(answer) == tuple(scene.expected["red"][:2])


@pytest.mark.parametrize(
    ("picture", "field", "said"),
    [
        (part(png_that_says(60_000, 60_000)), "data", "60000 x 60000 pixels"),
        (part(png_that_says(1000, 900)), "data", "cannot be decoded"),
        (part(RED[:-30]), "data", "cannot be decoded"),
        (part(encoded(media_type="image/jpeg")[:-60], "image/jpeg"), "data", "cannot be decoded"),
        (part(RED, "image/jpeg"), "data", "is image/png, not image/jpeg"),
        (part(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "data", "is none of PNG"),
        (part(RED, "image/svg+xml"), "media_type", "must be one of"),
        (linked("https://example.org/a.png"), "uri", "is not on this service's list"),
        (linked(f"https://localhost:{free_port()}/a.png"), "uri", "is not on this service's list"),
        (linked("https://localhost/a.png"), "uri", "could not be fetched"),
    ],
)
async def test_what_is_no_picture_is_refused_by_name(scene, picture, field, said):
    fault = await scene.refused(QUESTION, picture)
    assert fault.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
    (violation,) = fault.violations
    assert violation.field == f"messages[0].content[1].image.{field}"
    assert said in violation.description
    assert "127.0.0.1" not in fault.message
    # And the engine goes on.
    answer = await scene.look(part(RED), QUESTION)
    assert outcome(answer) == tuple(scene.expected["red"][:2])


async def test_more_images_or_pixels_than_allowed_are_refused(scene):
    fault = await scene.refused(*[part(RED)] * 4)
    assert "at most 3" in fault.violations[0].description
    fault = await scene.refused(*[part(encoded(size=(700, 700)))] * 3)
    assert "pixels" in fault.violations[0].description


async def test_the_mark_of_a_picture_is_no_picture(scene):
    fault = await scene.refused(f"A {IMAGE} of what?", part(RED))
    assert fault.violations[0].field == "messages[0].content[0].text"
    fields = scene.fields()
    del fields["messages"]
    asked = request(**fields, prompt=f"A {IMAGE} of")
    fault = await refusal(scene.caller.stub.Generate(asked, metadata=scene.caller.metadata))
    assert (fault.reason, fault.violations[0].field) == (
        errors_pb2.ERROR_REASON_INVALID_REQUEST,
        "prompt",
    )


async def test_the_mark_of_a_picture_in_pieces_is_found_when_they_are_together(scene):
    for parts in ((IMAGE[:3], IMAGE[3:]), (IMAGE[:3], IMAGE[3:], part(RED), QUESTION)):
        fault = await scene.refused(*parts)
        assert fault.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
        assert fault.violations[0].field == "messages"
    answer = await scene.look(part(RED), QUESTION)
    assert outcome(answer) == tuple(scene.expected["red"][:2])


async def test_a_continuation_holds_no_mark_of_a_picture(scene):
    from transformers import AutoTokenizer

    mark = AutoTokenizer.from_pretrained(scene.path).convert_tokens_to_ids(IMAGE)
    for continued in (pb.Continuation(token_ids=[5, mark]), pb.Continuation(text=f"A {IMAGE}")):
        for parts in ((QUESTION,), (part(RED), QUESTION)):
            fault = await scene.refused(*parts, continuation=continued)
            assert fault.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
            assert fault.violations[0].field == "continuation"


async def test_a_prompt_too_long_with_its_images_is_out_of_range(scene):
    length = scene.expected["red"][0]
    fault = await scene.refused(part(RED), QUESTION, sampling={"max_tokens": 1024 - length + 1})
    assert fault.reason == errors_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED
    assert fault.metadata["prompt_tokens"] == str(length)


async def test_a_model_that_reads_images_says_so(scene):
    listed = await scene.caller.stub.ListModels(
        model_pb2.ListModelsRequest(), metadata=scene.caller.metadata
    )
    assert pb.CAPABILITY_IMAGES in listed.models[0].capabilities


async def test_a_request_that_is_cancelled_while_its_image_comes_ends_at_once(scene):
    asked = request(**scene.fields(linked(scene.images.uri("/slow")), QUESTION))
    call = scene.caller.stub.StreamGenerate(asked, metadata=scene.caller.metadata, timeout=1.0)
    with pytest.raises(Exception, match="DEADLINE"):
        async for _ in call:
            pass
    answer = await scene.look(part(RED), QUESTION)
    assert outcome(answer) == tuple(scene.expected["red"][:2])
