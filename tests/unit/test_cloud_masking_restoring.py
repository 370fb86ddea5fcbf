"""Restoring an answer: in whatever pieces it comes, it is whole, and nothing waits needlessly."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.answer import Delta, ToolFragment
from services.cloud_proxy.masking import KINDS
from services.cloud_proxy.masking.placeholders import Placeholders
from services.cloud_proxy.masking.request import Masked, Masker
from services.cloud_proxy.masking.restoring import Restorer
from tests.support import entities
from tests.support.entities import EMAIL, MOBILE, PEM, VALUES, cut

ALL = frozenset(KINDS.values())
ANY_CUTS = st.lists(st.integers(0, 400), max_size=40)


def masked(*texts: str, seed: int = 1, **fields) -> Masked:
    messages = [
        pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=text)]) for text in texts
    ]
    request = pb.GenerateRequest(messages=messages, **fields)
    found = Masker(ALL, random.Random(seed).getrandbits).mask(request)
    assert found is not None
    return found


def sent(made: Masked, number: int = 0) -> str:
    return made.request.messages[number].content[0].text


def read(restorer: Restorer, pieces: list[str]) -> str:
    """A text answer that comes in these pieces."""
    told = [restorer.restored(Delta(0, text=piece)).text for piece in pieces]
    return "".join(told) + restorer.rest(0).text


def naively(placeholders: Placeholders, text: str) -> str:
    """All at once, and without a thought for pieces."""
    for known, value in placeholders.items():
        text = text.replace(known, value)
    return text


@entities.UNHURRIED
@given(st.lists(entities.texts, min_size=1, max_size=3), ANY_CUTS, st.integers(0, 2**32))
def test_masked_cut_anywhere_and_restored_is_what_it_was(texts, cuts, seed):
    whole = " ".join([*texts, EMAIL])
    made = masked(whole, seed=seed)
    assert read(made.restorer(), cut(sent(made), cuts)) == whole
    assert read(made.restorer(), list(sent(made))) == whole


@st.composite
def answers(draw) -> tuple[Placeholders, str]:
    """Placeholders, and an answer of them, of beginnings of them and of what looks like them."""
    made = masked(" ; ".join(VALUES), sampling=pb.Sampling(stop=draw(st.sampled_from([[], ["["]]))))
    known = [placeholder for placeholder, _ in made.placeholders.items()]
    parts = st.one_of(
        st.sampled_from(known),
        st.builds(lambda p, n: p[:n], st.sampled_from(known), st.integers(0, 16)),
        st.builds(lambda p, n: p[n:], st.sampled_from(known), st.integers(0, 16)),
        st.sampled_from([p.replace("1", "11") for p in known]),
        st.sampled_from(["[EMAIL_1_a2b3]", "[", "<", "]", "[]", "[EMAIL_", "[EMAIL_1_", "\n"]),
        entities.plain,
    )
    return made.placeholders, "".join(draw(st.lists(parts, max_size=10)))


@entities.UNHURRIED
@given(answers(), ANY_CUTS)
def test_no_known_placeholder_is_told_and_unknown_ones_pass(answer, cuts):
    placeholders, text = answer
    told = read(Restorer(placeholders, json_text=False), cut(text, cuts))
    assert told == naively(placeholders, text)
    assert not any(known in told for known, _ in placeholders.items())


@entities.UNHURRIED
@given(answers(), ANY_CUTS)
def test_only_the_beginning_of_a_placeholder_waits(answer, cuts):
    placeholders, text = answer
    restorer = Restorer(placeholders, json_text=False)
    come = told = ""
    for piece in cut(text, cuts):
        come += piece
        told += restorer.restored(Delta(0, text=piece)).text
        # Of what has come, the longest end that a placeholder begins with and goes on from.
        waits = max(
            (
                come[-n:]
                for known, _ in placeholders.items()
                for n in range(1, len(known))
                if come.endswith(known[:n])
            ),
            key=len,
            default="",
        )
        assert told == naively(placeholders, come[: len(come) - len(waits)])


@entities.UNHURRIED
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(1, 5)), max_size=80))
def test_every_choice_field_and_call_is_a_stream_of_its_own(turns):
    made = masked(f"to {EMAIL}, or call {MOBILE}", PEM)
    text, key = sent(made), sent(made, 1)
    fields = ["text", "reasoning", 0, 1]
    whole: dict[tuple[int, object], str] = {
        (choice, field): f'{{"{field}": "{text} {key}"}}' for choice in (0, 1) for field in fields
    }
    left = dict(whole)
    told = dict.fromkeys(whole, "")
    restorer = made.restorer()

    def take(delta: Delta) -> None:
        told[delta.choice, "text"] += delta.text
        told[delta.choice, "reasoning"] += delta.reasoning
        for tool in delta.tools:
            told[delta.choice, tool.index] += tool.arguments

    def feed(choice: int, field: object, piece: str) -> None:
        if isinstance(field, int):
            take(restorer.restored(Delta(choice, tools=(ToolFragment(field, arguments=piece),))))
        elif field == "text":
            take(restorer.restored(Delta(choice, text=piece)))
        else:
            take(restorer.restored(Delta(choice, reasoning=piece)))

    for choice, field, size in turns:
        at = choice, fields[field]
        piece, left[at] = left[at][:size], left[at][size:]
        feed(*at, piece)
    for at, rest in left.items():
        feed(*at, rest)
    for choice in (0, 1):
        take(restorer.rest(choice))
    for (choice, field), answer in told.items():
        value = f"to {EMAIL}, or call {MOBILE} {PEM}"
        if isinstance(field, int):
            assert json.loads(answer) == {str(field): value}
        else:
            assert answer == f'{{"{field}": "{value}"}}', choice


@entities.UNHURRIED
@given(entities.texts, ANY_CUTS)
def test_values_are_escaped_where_the_answer_is_json(text, cuts):
    wanted = pb.ResponseFormat(json_object=pb.ResponseFormat.JsonObject())
    whole = f"{text} {PEM}"
    made = masked(whole, response_format=wanted)
    document = json.dumps({"said": sent(made)})
    assert json.loads(read(made.restorer(), cut(document, cuts))) == {"said": whole}
    fragments = [
        Delta(0, tools=(ToolFragment(0, arguments=piece),)) for piece in cut(document, cuts)
    ]
    restorer = made.restorer()
    told = [t.arguments for f in fragments for t in restorer.restored(f).tools]
    told += [t.arguments for t in restorer.rest(0).tools]
    assert json.loads("".join(told)) == {"said": whole}


def test_a_calls_id_and_name_do_not_wait_for_its_arguments():
    made = masked(EMAIL)
    stands = sent(made)
    restorer = made.restorer()
    first = restorer.restored(Delta(0, tools=(ToolFragment(0, "c", "send", stands[:5]),)))
    assert first.tools == (ToolFragment(0, "c", "send", ""),)
    assert restorer.restored(Delta(0, tools=(ToolFragment(0, arguments=stands[5:9]),))).tools == ()
    last = restorer.restored(Delta(0, tools=(ToolFragment(0, arguments=stands[9:]),)))
    assert last.tools == (ToolFragment(0, arguments=EMAIL),)
    assert restorer.rest(0) == Delta(0)


def test_what_was_cut_off_within_a_placeholder_is_told_at_the_end():
    made = masked(EMAIL)
    stands = sent(made)
    restorer = made.restorer()
    assert restorer.restored(Delta(0, text=f"to {stands[:-1]}")).text == "to "
    assert restorer.rest(0).text == stands[:-1]
    assert restorer.rest(0).text == ""


@pytest.mark.timeout(60)
def test_a_hostile_answer_takes_linear_time():
    made = masked(" ".join(f"{n}@example.com" for n in range(2000)))
    stands = next(known for known, _ in made.placeholders.items())
    for unit in ("[", stands[:-1], stands, "[EMAIL_1", "]"):
        text = unit * (300_000 // len(unit))
        assert read(made.restorer(), cut(text, list(range(0, len(text), 7)))) == naively_fast(
            text, stands
        )


def naively_fast(text: str, stands: str) -> str:
    return text.replace(stands, "0@example.com")
