"""Chat turns with tools, what templates are asked, names of parsers, and how parsers are fed."""

from __future__ import annotations

import pytest

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.local_engine.call_fragments import CallFragments
from services.local_engine.chat_turns import chat_turns
from services.local_engine.engine import ToolCallDelta
from services.local_engine.on_vllm.chat_format import MAX_TEMPLATE_BYTES, ChatFormat, read_template
from services.local_engine.on_vllm.parser_names import FAMILIES, check_registered, evident
from services.local_engine.parser_feed import AT_ONCE, SHARE, ParserFeed

CALL = pb.ToolCall(id="c1", name="weather", arguments='{"city": "Bern"}')
HISTORY = [
    pb.Message(role=pb.ROLE_ASSISTANT, tool_calls=[CALL]),
    pb.Message(role=pb.ROLE_TOOL, tool_call_id="c1", content=[pb.ContentPart(text="12")]),
]


def effort(level: pb.ReasoningEffort) -> pb.GenerateRequest:
    return pb.GenerateRequest(reasoning=pb.Reasoning(effort=level))


def test_a_call_s_arguments_are_an_object_and_its_result_has_its_name():
    call, result = chat_turns(HISTORY, tools=True)
    assert call["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Bern"}}
    assert result == {"role": "tool", "content": "12", "tool_call_id": "c1", "name": "weather"}
    with pytest.raises(Fault) as refused:
        chat_turns(HISTORY)
    assert refused.value.metadata["feature"] == "tools"


def test_an_effort_becomes_what_the_template_reads():
    switch = ChatFormat("{% if enable_thinking %}<think>{% endif %}", reasoning=True)
    assert switch.thinking(effort(pb.REASONING_EFFORT_NONE)) == {"enable_thinking": False}
    assert switch.thinking(effort(pb.REASONING_EFFORT_HIGH)) == {"enable_thinking": True}
    assert switch.thinking(pb.GenerateRequest()) == {}
    graded = ChatFormat("Reasoning: {{ reasoning_effort }}", reasoning=True)
    assert graded.thinking(effort(pb.REASONING_EFFORT_LOW)) == {"reasoning_effort": "low"}
    word = ChatFormat("This template is thinking out loud, if you like.")
    assert word.thinking(effort(pb.REASONING_EFFORT_NONE)) == {}


@pytest.mark.parametrize(
    ("template", "reasoning", "level"),
    [
        ("plain", True, pb.REASONING_EFFORT_NONE),
        ("plain", False, pb.REASONING_EFFORT_LOW),
        ("{{ reasoning_effort }}", True, pb.REASONING_EFFORT_NONE),
    ],
)
def test_an_effort_that_the_template_does_not_read_is_refused(template, reasoning, level):
    with pytest.raises(Fault) as refused:
        ChatFormat(template, reasoning=reasoning).thinking(effort(level))
    assert refused.value.reason == errors_pb2.ERROR_REASON_UNSUPPORTED
    assert refused.value.metadata["feature"] == "reasoning.effort"


def test_a_template_s_file_is_bounded(tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages }}", "utf-8")
    assert read_template(str(file)) == "{{ messages }}"
    for content in ("", "x" * (MAX_TEMPLATE_BYTES + 1)):
        file.write_text(content, "utf-8")
        with pytest.raises(ValueError, match=r"empty|more than"):
            read_template(str(file))
    with pytest.raises(ValueError, match="cannot be read"):
        read_template(str(tmp_path / "absent"))


def test_a_parser_that_vllm_lacks_is_named_with_what_comes_close():
    check_registered("TOOL_PARSER", "", ["hermes"])
    check_registered("TOOL_PARSER", "hermes", ["hermes"])
    with pytest.raises(ValueError, match="did you mean hermes"):
        check_registered("TOOL_PARSER", "hermez", ["hermes", "mistral"])


def test_a_model_shows_what_it_wants_by_its_family_or_its_template():
    assert evident("qwen3", "{{ tools }} <think>") == FAMILIES["qwen3"]
    assert evident("llama", "{{ tools }} <|python_tag|>") == ("llama3_json", "")
    assert evident("qwen2", "{{ messages }} <think>") == ("", "deepseek_r1")
    assert evident("llama", "{{ messages }}") == ("", "")


def test_a_parser_reads_no_character_more_than_a_bounded_number_of_times():
    for total in (10_000, 40_000, 160_000):
        feed, size, read = ParserFeed(incremental=False), 0, 0
        for _ in range(total // 4):
            feed.add("abcd", [1])
            size += 4
            if feed.due:
                text, ids = feed.take()
                assert len(text) == 4 * len(ids)
                read += size
        assert read <= AT_ONCE * AT_ONCE / 8 + 2 * SHARE * total
    assert ParserFeed(incremental=True).due


def test_tokens_and_text_are_given_together_when_text_comes_late():
    words = {1: "one ", 2: "</think>", 3: "three"}
    feed = ParserFeed(
        incremental=False, decode=lambda ids: "".join(words.get(i, "") for i in ids), context=[9]
    )
    feed.add("one </th", [1, 2, 3])
    assert feed.take() == ("one ", [1])
    feed.add("ink>th", [])
    assert feed.take() == ("</think>", [2])
    assert feed.take(rest=True) == ("th", [3])


def test_a_call_s_id_and_name_are_told_once_and_bare_calls_get_an_object():
    calls = CallFragments()
    assert calls.add([ToolCallDelta(0, arguments="{")]) == ()
    (first,) = calls.add([ToolCallDelta(0, "", "f"), ToolCallDelta(0, "x", "f", "}")])
    assert (first.name, first.arguments, bool(first.id)) == ("f", "{}", True)
    assert calls.add([ToolCallDelta(0, "x", "f")]) == ()
    calls.add([ToolCallDelta(1, "y", "g")])
    assert calls.complete() == (ToolCallDelta(1, arguments="{}"),)
    assert len(calls) == 2
