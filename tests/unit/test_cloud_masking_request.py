"""What leaves of a request: placeholders in every text, the same for the same value, valid JSON."""

import json
import random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.masking import KINDS
from services.cloud_proxy.masking.detection import MOST_ENTITIES, find
from services.cloud_proxy.masking.placeholders import draw_nonce
from services.cloud_proxy.masking.request import Masked, Masker, Unmaskable
from tests.support import entities
from tests.support.entities import CARD, EMAIL, KEY, MOBILE, PEM

ALL = frozenset(KINDS.values())


def masker(floor=ALL, seed: int = 1) -> Masker:
    return Masker(floor, random.Random(seed).getrandbits)


def said(text: str, role=pb.ROLE_USER, **fields) -> pb.Message:
    return pb.Message(role=role, content=[pb.ContentPart(text=text)], **fields)


def masked(request: pb.GenerateRequest, **options) -> Masked:
    found = masker(**options).mask(request)
    assert found is not None
    return found


def placeholder(made: Masked, text: str, before: str = "", after: str = "") -> str:
    """What stands between two known texts."""
    assert text.startswith(before)
    assert text.endswith(after)
    found = text[len(before) : len(text) - len(after)]
    assert made.placeholders.value(found) is not None, text
    return found


def everywhere() -> pb.GenerateRequest:
    """A request with the same address in every place where a text may stand."""
    arguments = json.dumps({"to": EMAIL, EMAIL: [1, {"x": f"<{EMAIL}>"}]})
    schema = json.dumps({"type": "object", "properties": {"to": {"examples": [EMAIL]}}})
    return pb.GenerateRequest(
        model="m",
        messages=[
            said(f"system {EMAIL}", pb.ROLE_SYSTEM),
            said(f"user {EMAIL}"),
            said(
                f"assistant {EMAIL}",
                pb.ROLE_ASSISTANT,
                tool_calls=[pb.ToolCall(id="c", name="send", arguments=arguments)],
            ),
            said(json.dumps({"sent": EMAIL}), pb.ROLE_TOOL, tool_call_id="c"),
            said(f"tool {EMAIL}", pb.ROLE_TOOL, tool_call_id="c"),
        ],
        prompt=f"prompt {EMAIL}",
        tools=[pb.Tool(name="send", description=f"as {EMAIL}", parameters_json_schema=schema)],
        response_format=pb.ResponseFormat(json_schema=schema),
        continuation=pb.Continuation(text=f"continued {EMAIL}"),
        sampling=pb.Sampling(stop=[f"stop {EMAIL}"]),
    )


def test_the_same_value_has_the_same_placeholder_in_every_place():
    request = everywhere()
    before = request.SerializeToString(deterministic=True)
    made = masked(request)
    assert request.SerializeToString(deterministic=True) == before
    assert EMAIL.encode() not in made.request.SerializeToString()
    stands = placeholder(made, made.request.prompt, "prompt ")
    assert made.counts == {pb.PII_KIND_EMAIL: 1}
    back = made.request.SerializeToString(deterministic=True).count(stands.encode())
    assert back == before.count(EMAIL.encode())
    assert json.loads(made.request.messages[2].tool_calls[0].arguments) == {
        "to": stands,
        stands: [1, {"x": f"<{stands}>"}],
    }


def test_what_is_no_text_passes_unchanged():
    state = pb.ReasoningState(provider="p", data=EMAIL.encode())
    image = pb.Image(data=EMAIL.encode(), media_type="image/png")
    request = pb.GenerateRequest(
        model="m",
        messages=[
            pb.Message(
                role=pb.ROLE_USER, content=[pb.ContentPart(text=EMAIL), pb.ContentPart(image=image)]
            ),
            pb.Message(role=pb.ROLE_ASSISTANT, reasoning_state=[state]),
        ],
        request_id="r",
        labels={"to": EMAIL},
    )
    sent = masked(request).request
    assert sent.messages[0].content[1].image == image
    assert list(sent.messages[1].reasoning_state) == [state]
    sent.messages[0].content[0].text = EMAIL
    assert sent == request


def test_kinds_are_numbered_in_order_and_say_what_they_are():
    text = f"{EMAIL} {MOBILE} {EMAIL} b@example.com {CARD} {KEY}"
    sent = masked(pb.GenerateRequest(messages=[said(text)])).request.messages[0].content[0].text
    names = [word.strip("[]").rsplit("_", 1)[0] for word in sent.split(" ")]
    assert names == ["EMAIL_1", "PHONE_1", "EMAIL_1", "EMAIL_2", "CARD_1", "SECRET_1"]


def test_nothing_to_mask_and_nothing_asked_for_cost_no_copy():
    assert masker().mask(pb.GenerateRequest(messages=[said("hello")])) is None
    assert masker(floor=()).mask(everywhere()) is None


def test_a_request_may_ask_for_more_than_the_floor_and_never_for_less():
    request = pb.GenerateRequest(messages=[said(f"{EMAIL} {MOBILE}")])
    cautious = Masker({pb.PII_KIND_EMAIL}, random.Random(1).getrandbits)
    made = cautious.mask(request)
    assert made
    assert made.counts == {pb.PII_KIND_EMAIL: 1}
    made = cautious.mask(request, [int(pb.PII_KIND_PHONE)])
    assert made
    assert made.counts == {pb.PII_KIND_EMAIL: 1, pb.PII_KIND_PHONE: 1}


@pytest.mark.parametrize("kind", [0, 99])
def test_a_kind_that_is_not_known_here_is_refused(kind):
    with pytest.raises(Unmaskable) as refused:
        masker().mask(pb.GenerateRequest(prompt="x"), [kind])
    assert refused.value.feature == "mask"


@pytest.mark.parametrize(
    ("request_", "feature"),
    [
        (pb.GenerateRequest(prompt_token_ids=[1, 2]), "prompt_token_ids"),
        (pb.GenerateRequest(prompt="x", response_format=pb.ResponseFormat(regex=f"{EMAIL}|no")),
         "response_format.regex"),
        (pb.GenerateRequest(prompt="x", response_format=pb.ResponseFormat(grammar=f'a: "{EMAIL}"')),
         "response_format.grammar"),
        (pb.GenerateRequest(prompt=f"{EMAIL} " * (MOST_ENTITIES + 1)), "request"),
        (pb.GenerateRequest(messages=[said(f"{EMAIL} " * (MOST_ENTITIES // 2 + 1))] * 2),
         "request"),
    ],
)  # fmt: skip
def test_what_cannot_be_masked_is_refused(request_, feature):
    with pytest.raises(Unmaskable) as refused:
        masker().mask(request_)
    assert refused.value.feature == feature
    assert EMAIL not in str(refused.value)


def test_a_choice_of_answers_is_masked():
    options = pb.ResponseFormat(choice=pb.ResponseFormat.Choice(options=["no", EMAIL]))
    sent = masked(pb.GenerateRequest(prompt=EMAIL, response_format=options)).request
    assert list(sent.response_format.choice.options) == ["no", sent.prompt]


# Stop strings


@pytest.mark.parametrize(
    ("stop", "opener"),
    [
        ("\n\n", "["), ("[INST]", "["), ("User:", "["), ("[", "<"), ("]", "<"), ("].", "<"),
        (" [", "<"), ("</s>", "["),
    ],
)  # fmt: skip
def test_placeholders_take_a_form_that_no_stop_string_meets(stop, opener):
    request = pb.GenerateRequest(prompt=EMAIL, sampling=pb.Sampling(stop=[stop]))
    assert masked(request).request.prompt.startswith(opener)


def test_a_stop_string_within_every_form_is_refused():
    request = pb.GenerateRequest(prompt=EMAIL, sampling=pb.Sampling(stop=["_"]))
    with pytest.raises(Unmaskable) as refused:
        masker().mask(request)
    assert refused.value.feature == "sampling.stop"
    request.prompt = "nothing to mask"
    assert masker().mask(request) is None


def test_a_stop_string_that_is_masked_stops_at_its_value():
    request = pb.GenerateRequest(prompt=EMAIL, sampling=pb.Sampling(stop=[EMAIL]))
    sent = masked(request).request
    assert list(sent.sampling.stop) == [sent.prompt]


# Nonces


def test_a_nonce_is_in_no_text_of_the_request():
    drawn = draw_nonce([], random.Random(5).getrandbits)
    assert draw_nonce(["x"], random.Random(5).getrandbits) == drawn
    again = draw_nonce([f"[EMAIL_1_{drawn}]"], random.Random(5).getrandbits)
    assert again != drawn
    request = pb.GenerateRequest(prompt=f"{EMAIL} [EMAIL_1_{drawn}]")
    made = masked(request, seed=5)
    assert made.request.prompt.endswith(f" [EMAIL_1_{drawn}]")
    assert made.placeholders.value(f"[EMAIL_1_{drawn}]") is None


def test_even_constant_randomness_ends():
    text = "b2" * 50
    assert draw_nonce([text], lambda bits: 0) == "b2" * 51


def test_other_requests_have_other_nonces():
    one = masker()
    texts = {one.mask(pb.GenerateRequest(prompt=EMAIL)).request.prompt for _ in range(20)}
    assert len(texts) > 15


# JSON


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"to" :  "JANE", "n":1.50}', '{"to" :  "*", "n":1.50}'),
        ('{"to": NUMBER, "not": NUMBER.5}', '{"to": "*", "not": NUMBER.5}'),
        ('["a\\nb JANE \\u00e9"]', '["a\\nb * \\u00e9"]'),
        ('["\\ud83d\\ude00 jane\\u0040example.com \\ud83d\\ude00"]',
         '["\\ud83d\\ude00 * \\ud83d\\ude00"]'),
        ('{"a": 1, "a": "JANE"}', '{"a": 1, "a": "*"}'),
        ('{"phone": "62345678", "id": "62345678"}', '{"phone": "*", "id": "62345678"}'),
        ('["4111", "1111", "1111", "1111", "JANE"]',
         '["4111", "1111", "1111", "1111", "*"]'),
        ("not json JANE", "not json *"),
        ('["\\ud800 JANE"]', '["\\ud800 *"]'),
    ],
)  # fmt: skip
def test_only_values_change_in_json(arguments, expected):
    written = arguments.replace("JANE", EMAIL).replace("NUMBER", MOBILE)
    call = pb.ToolCall(id="c", name="f", arguments=written)
    made = masked(
        pb.GenerateRequest(messages=[pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[call])])
    )
    sent = made.request.messages[0].tool_calls[0].arguments
    ((stands, _),) = made.placeholders.items()
    assert sent == expected.replace("NUMBER", MOBILE).replace("*", stands)


def test_a_value_is_the_same_written_plainly_and_in_json():
    request = pb.GenerateRequest(
        messages=[
            said(PEM),
            pb.Message(
                role=pb.ROLE_ASSISTANT,
                tool_calls=[pb.ToolCall(id="c", name="f", arguments=json.dumps({"key": PEM}))],
            ),
            said(json.dumps([PEM]), pb.ROLE_TOOL, tool_call_id="c"),
        ]
    )
    made = masked(request)
    stands = placeholder(made, made.request.messages[0].content[0].text)
    assert made.counts == {pb.PII_KIND_SECRET: 1}
    assert json.loads(made.request.messages[1].tool_calls[0].arguments) == {"key": stands}
    assert json.loads(made.request.messages[2].content[0].text) == [stands]


def test_numbers_that_bound_something_in_a_schema_stay_numbers():
    schema = json.dumps({"type": "integer", "maximum": int(MOBILE), "description": EMAIL})
    tool = pb.Tool(name="t", parameters_json_schema=schema)
    made = masked(pb.GenerateRequest(prompt="x", tools=[tool]))
    sent = json.loads(made.request.tools[0].parameters_json_schema)
    assert sent["maximum"] == int(MOBILE)
    assert made.placeholders.value(sent["description"]) == EMAIL


# Properties


@entities.UNHURRIED
@given(st.lists(entities.texts, min_size=1, max_size=5), st.integers(0, 2**32))
def test_what_leaves_holds_no_entity(texts, seed):
    roles = [pb.ROLE_SYSTEM, pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_TOOL]
    messages = [said(text, roles[n % 4]) for n, text in enumerate(texts)]
    made = masker(seed=seed).mask(pb.GenerateRequest(messages=messages))
    if made is None:
        assert not any(find(text, ALL) for text in texts)
        return
    for message in made.request.messages:
        assert find(message.content[0].text, ALL) == []


json_values = st.recursive(
    st.one_of(entities.texts, st.integers(), st.booleans(), st.none(), entities.mobiles.map(int)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(entities.texts, inner, max_size=4)
    ),
    max_leaves=12,
)


@entities.UNHURRIED
@given(json_values, st.booleans(), st.integers(0, 2**32))
def test_masked_json_is_json_of_the_same_shape(document, ascii_only, seed):
    arguments = json.dumps(document, ensure_ascii=ascii_only)
    call = pb.ToolCall(id="c", name="f", arguments=arguments)
    request = pb.GenerateRequest(messages=[pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[call])])
    made = masker(seed=seed).mask(request)
    if made is None:
        return
    sent = json.loads(made.request.messages[0].tool_calls[0].arguments)

    def same(was, now) -> bool:
        if isinstance(was, dict):
            return len(was) == len(now) and all(map(same, was.values(), now.values()))
        if isinstance(was, list):
            return len(was) == len(now) and all(map(same, was, now))
        if isinstance(was, str):
            return unmasked(made, now) == was and find(now, ALL) == []
        return was == now or made.placeholders.value(now) == str(was)

    assert same(document, sent)


def unmasked(made: Masked, text: str) -> str:
    """Restored in the simplest way."""
    for known, value in made.placeholders.items():
        text = text.replace(known, value)
    return text


@entities.UNHURRIED
@given(st.text('\\"/bnu0048dceD @a.', max_size=30))
def test_a_string_with_any_escapes_stays_what_it_is_around_its_entity(content):
    try:
        before = orjson.loads(f'"{content}"')
    except orjson.JSONDecodeError:
        return
    arguments = f'["{content} jane\\u0040example.com {content}"]'
    call = pb.ToolCall(id="c", name="f", arguments=arguments)
    request = pb.GenerateRequest(messages=[pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[call])])
    made = masked(request)
    (sent,) = json.loads(made.request.messages[0].tool_calls[0].arguments)
    assert unmasked(made, sent) == f"{before} jane@example.com {before}"
