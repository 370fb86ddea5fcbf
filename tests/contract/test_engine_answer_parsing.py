"""vLLM's parsers behind our AnswerParser: the same answer however it is cut into deltas.

The parsers are vLLM's own, on token streams of the small model's tokenizer; no engine runs.
"""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.local_engine.engine import (
    ConstraintKind,
    Continuation,
    Delta,
    Finish,
    SamplingSpec,
    TokenUsage,
)
from services.local_engine.on_vllm.answer_parser import VllmAnswerParser
from services.local_engine.on_vllm.answer_parsers import (
    AnswerParsers,
    answer_parsers,
    chat_format,
)
from services.local_engine.on_vllm.chat_tokenizer import ChatTokenizer
from services.local_engine.on_vllm.parser_names import ParserNames
from services.local_engine.text_stream import AnswerText
from tests.support.engines import MODEL
from tests.support.tool_model import write_tool_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

WEATHER = pb.Tool(
    name="get_weather",
    description="The weather in a city.",
    parameters_json_schema=json.dumps(
        {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        }
    ),
)
CLOCK = pb.Tool(name="get_time", description="The time now.")
CALL = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich 🌊", "days": 2}}\n'
    "</tool_call>"
)
SECOND = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
QWEN_CALL = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nZürich\n</parameter>\n"
    "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>"
)


class Bench:
    """The tokenizer of a model that knows the markers, and what is built on it."""

    def __init__(self, directory: Any) -> None:
        from vllm.config import ModelConfig
        from vllm.tokenizers.registry import cached_get_tokenizer

        self.raw = cached_get_tokenizer(str(directory))
        self.config = ModelConfig(model=str(directory), max_model_len=1024)

    def parsers(self, tools: str = "", reasoning: str = "") -> AnswerParsers:
        names = ParserNames(tools, reasoning)
        chat = chat_format(names, self.raw, "")
        tokenizer = ChatTokenizer(self.raw, len(self.raw.get_vocab()), chat)
        return answer_parsers(names, tokenizer, self.raw, self.config)

    def ids(self, text: str) -> list[int]:
        return list(self.raw.encode(text, add_special_tokens=False))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    if not MODEL.is_dir():
        pytest.skip("no model: run tools/fetch_model.py")
    return Bench(write_tool_model(tmp_path_factory.mktemp("model") / "tool-model"))


class Parsed:
    """What came out, joined."""

    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        self.ids: list[int] = []
        self.calls: dict[int, dict[str, str]] = {}
        self.finish: Finish | None = None
        self.usage: TokenUsage | None = None
        self.deltas: list[Delta] = []

    def add(self, delta: Delta) -> None:
        self.deltas.append(delta)
        self.text += delta.text
        self.reasoning += delta.reasoning
        assert delta.first_token == len(self.ids)
        self.ids.extend(delta.token_ids)
        for call in delta.tool_calls:
            if call.index not in self.calls:
                assert call.id
                assert call.name
                self.calls[call.index] = {"id": call.id, "name": call.name, "arguments": ""}
            else:
                assert not call.id
                assert not call.name
            self.calls[call.index]["arguments"] += call.arguments
        self.finish = delta.finish or self.finish
        self.usage = delta.usage or self.usage

    @property
    def called(self) -> list[tuple[str, Any]]:
        assert list(self.calls) == list(range(len(self.calls)))
        return [(c["name"], json.loads(c["arguments"])) for c in self.calls.values()]


def asked(*tools: pb.Tool, **fields: Any) -> pb.GenerateRequest:
    message = pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="Weather?")])
    return pb.GenerateRequest(messages=[message], tools=tools, **fields)


def cuts(count: int) -> list[list[int]]:
    """Token by token, in random pieces, all at once: the sizes of deltas."""
    ways = [[1] * count, [count]]
    for seed in range(8):
        chance, sizes = random.Random(seed), []
        while sum(sizes) < count:
            sizes.append(min(chance.randint(1, 9), count - sum(sizes)))
        ways.append(sizes)
    return ways


async def parsed(
    bench: Bench,
    parsers: AnswerParsers,
    request: pb.GenerateRequest,
    text: str,
    sizes: list[int] | None = None,
    *,
    prompt: str = "<|im_start|>assistant\n",
    finish: Finish = Finish.STOP,
    stop: tuple[str, ...] = (),
    index: int = 0,
    parser: Any = None,
) -> Parsed:
    """Sends an answer through the request's parser, as an engine would."""
    ids, before = bench.ids(text), bench.ids(prompt)
    if parser is None:
        parser = parsers.parser_for(request)
        assert parser is not None
        spec = await parser.shape(SamplingSpec(stop=stop))
        parser.begin(spec, before, Continuation())
    decode = lambda tokens: str(bench.raw.decode(list(tokens), skip_special_tokens=False))  # noqa: E731
    answer, result, at = AnswerText(decode, before, stops=stop), Parsed(), 0
    sizes = [1] * len(ids) if sizes is None else sizes
    for number, size in enumerate(sizes):
        last = number == len(sizes) - 1
        new, matched, counted = answer.push(ids[at : at + size], last=last)
        new_ids, last = ids[at : at + counted], last or bool(matched)
        usage = TokenUsage(prompt=len(before), cached_prompt=0, completion=at + counted)
        delta = Delta(index, at, new, new_ids, (), finish if last else None, matched)
        if last:
            delta.usage = usage
        result.add(parser.push(delta))
        at += size
        if matched:
            break
    return result


CASES = {
    "hermes, one call": ("hermes", "", CALL),
    "hermes, text and two calls": ("hermes", "", f"Let me look.\n{CALL}\n{SECOND}"),
    "hermes, text only": ("hermes", "", "It is 3 < 4 and sunny, <b>warm</b>."),
    "hermes, text that ends like a marker": ("hermes", "", "Is a <tool_"),
    "llama3_json": (
        "llama3_json",
        "",
        '{"name": "get_weather", "parameters": {"city": "Zürich", "days": 2}}',
    ),
    "llama3_json, text only": ("llama3_json", "", "It is sunny in Zürich."),
    "pythonic, two calls": ("pythonic", "", "[get_weather(city='Bern', days=2), get_time()]"),
    "pythonic, text only": ("pythonic", "", "[1] is the best source."),
    "mistral": (
        "mistral",
        "",
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Bern"}}]',
    ),
    "qwen3_coder": ("qwen3_coder", "", f"Let me look.\n{QWEN_CALL}"),
    "hermes after qwen3's reasoning": ("hermes", "qwen3", f"<think>\nHm.\n</think>\n\n{CALL}"),
    "hermes after deepseek_r1's reasoning": ("hermes", "deepseek_r1", f"<think>Hm.</think>{CALL}"),
}


@pytest.mark.parametrize("case", CASES)
async def test_an_answer_is_the_same_however_it_is_cut(bench, case):
    tools, reasoning, text = CASES[case]
    parsers, request = bench.parsers(tools, reasoning), asked(WEATHER, CLOCK)
    kept = parsers._parsers
    form = kept.request(history=[], tools=_entries(request), choice="auto")
    whole = kept.parser(form, {}).parse(
        text, form, enable_auto_tools=True, model_output_token_ids=bench.ids(text)
    )
    expected = [(c.name, json.loads(c.arguments)) for c in whole[2] or ()]
    for sizes in cuts(len(bench.ids(text))):
        result = await parsed(bench, parsers, request, text, sizes)
        assert result.ids == bench.ids(text), sizes
        assert result.called == expected, sizes
        assert result.text.strip() == (whole[1] or "").strip(), sizes
        assert result.reasoning.strip() == (whole[0] or "").strip(), sizes
        assert result.finish is (Finish.TOOL_CALLS if expected else Finish.STOP)


def _entries(request: pb.GenerateRequest) -> list[dict[str, Any]]:
    from services.local_engine.chat_turns import tool_entries

    return tool_entries(request.tools)


async def test_a_call_that_is_cut_has_the_beginning_of_its_arguments_and_says_so(bench):
    parsers, request = bench.parsers("hermes"), asked(WEATHER)
    ids = bench.ids(CALL)
    cut = bench.raw.decode(ids[:-12], skip_special_tokens=False)
    for sizes in cuts(len(bench.ids(cut))):
        result = await parsed(bench, parsers, request, cut, sizes, finish=Finish.LENGTH)
        assert result.finish is Finish.LENGTH
        assert result.calls[0]["name"] == "get_weather"
        whole = json.dumps({"city": "Zürich 🌊", "days": 2}, ensure_ascii=False)
        assert whole.startswith(result.calls[0]["arguments"])
        assert result.calls[0]["arguments"] != whole
        assert result.text == ""


async def test_a_stop_string_ends_an_answer_as_stop_though_it_has_calls(bench):
    parsers, request = bench.parsers("hermes"), asked(WEATHER)
    result = await parsed(bench, parsers, request, f"{CALL}\nDone. More.", stop=("Done.",))
    assert (result.finish, result.deltas[-1].matched_stop) == (Finish.STOP, "Done.")
    assert [name for name, _ in result.called] == ["get_weather"]


async def test_text_that_comes_later_than_its_tokens_is_told_apart_all_the_same(bench):
    # A stop string of 40 characters holds text back: the marker's token is long there.
    parsers, request = bench.parsers("", "deepseek_r1"), asked()
    text = "I should say where the river ends.</think>It ends in the sea, far away from here."
    for sizes in cuts(len(bench.ids(text))):
        result = await parsed(
            bench, parsers, request, text, sizes, prompt="<think>\n", stop=("x" * 40,)
        )
        assert result.reasoning == "I should say where the river ends."
        assert result.text == "It ends in the sea, far away from here."


@pytest.mark.parametrize("prompt", ["<think>\n", "<|im_start|>assistant\n"])
@pytest.mark.parametrize("name", ["deepseek_r1", "qwen3"])
async def test_reasoning_is_counted_without_its_markers(bench, name, prompt):
    parsers, request = bench.parsers("", name), asked()
    begin = "" if "think" in prompt else "<think>"
    thought = "First I think of it. Then I know."
    result = await parsed(bench, parsers, request, f"{begin}{thought}</think>Yes.", prompt=prompt)
    assert result.usage is not None
    assert result.usage.reasoning == len(bench.ids(thought))
    assert (result.reasoning, result.text) == (thought, "Yes.")


async def test_reasoning_that_is_not_wanted_is_dropped_and_still_counted(bench):
    parsers = bench.parsers("", "deepseek_r1")
    request = asked(reasoning=pb.Reasoning(include=False))
    result = await parsed(bench, parsers, request, "Hm, well.</think>Yes.", prompt="<think>")
    assert (result.reasoning, result.text) == ("", "Yes.")
    assert result.usage is not None
    assert result.usage.reasoning == len(bench.ids("Hm, well."))
    assert len(result.ids) == len(bench.ids("Hm, well.</think>Yes."))


async def test_after_a_prompt_whose_reasoning_has_ended_all_is_text(bench):
    parsers = bench.parsers("hermes", "deepseek_r1")
    prompt = "<think>\n\n</think>\n\n"
    result = await parsed(bench, parsers, asked(WEATHER), "Is a <tool", prompt=prompt)
    assert (result.text, result.reasoning) == ("Is a <tool", "")
    result = await parsed(bench, parsers, asked(WEATHER), f"Look.{CALL}", prompt=prompt)
    assert (result.text, len(result.calls), result.reasoning) == ("Look.", 1, "")


async def test_each_choice_has_a_parser_of_its_own(bench):
    parsers, request = bench.parsers("hermes", "deepseek_r1"), asked(WEATHER)
    parser = parsers.parser_for(request)
    spec = await parser.shape(SamplingSpec(n=2))
    parser.begin(spec, bench.ids("<think>"), Continuation())
    texts = ("Hm.</think>No.", f"Well.</think>{CALL}")
    streams = [bench.ids(text) for text in texts]
    results = [Parsed(), Parsed()]
    for at in range(max(map(len, streams))):
        for index, ids in enumerate(streams):
            if at < len(ids):
                text = bench.raw.decode([ids[at]], skip_special_tokens=False)
                last = Finish.STOP if at == len(ids) - 1 else None
                results[index].add(parser.push(Delta(index, at, text, ids[at : at + 1], (), last)))
    assert (results[0].reasoning, results[0].text, results[0].finish) == ("Hm.", "No.", Finish.STOP)
    assert results[1].reasoning == "Well."
    assert results[1].finish is Finish.TOOL_CALLS
    assert [name for name, _ in results[1].called] == ["get_weather"]


@pytest.mark.parametrize(
    ("tools", "kind"),
    [("hermes", ConstraintKind.STRUCTURAL_TAG), ("pythonic", ConstraintKind.JSON_SCHEMA)],
)
@pytest.mark.parametrize("named", ["", "get_weather"])
async def test_a_demanded_call_is_sampled_under_a_constraint_of_its_schema(
    bench, tools, kind, named
):
    choice = pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED, name=named)
    request = asked(WEATHER, CLOCK, tool_choice=choice)
    spec = await bench.parsers(tools).parser_for(request).shape(SamplingSpec())
    assert spec.constraint is not None
    assert (spec.constraint.kind, spec.constraint.origin) == (kind, "tools")
    assert '"integer"' in spec.constraint.text
    assert ("get_time" in spec.constraint.text) == (not named)


@pytest.mark.parametrize("tools", ["pythonic", "granite", "seed_oss", "xlam"])
async def test_a_demanded_call_comes_out_of_the_json_that_it_was_forced_into(bench, tools):
    required = pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)
    parsers, request = bench.parsers(tools), asked(WEATHER, CLOCK, tool_choice=required)
    arguments = {"city": "Zürich, \\ {Kreis}", "days": 2}
    calls = [
        {"name": "get_weather", "parameters": arguments},
        {"name": "get_time", "parameters": {}},
    ]
    text = json.dumps(calls, ensure_ascii=False)
    for sizes in cuts(len(bench.ids(text))):
        result = await parsed(bench, parsers, request, text, sizes)
        assert result.called == [("get_weather", arguments), ("get_time", {})]
        assert (result.text, result.finish) == ("", Finish.TOOL_CALLS)
    request.tool_choice.name = "get_weather"
    result = await parsed(bench, parsers, request, json.dumps(arguments))
    assert result.called == [("get_weather", arguments)]
    assert result.finish is Finish.TOOL_CALLS


async def test_a_call_that_nothing_would_force_is_not_demanded(bench):
    required = pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)
    parser = bench.parsers("minimax_m3").parser_for(asked(WEATHER, tool_choice=required))
    with pytest.raises(Fault, match="demanded") as refused:
        await parser.shape(SamplingSpec())
    assert refused.value.reason == errors_pb2.ERROR_REASON_UNSUPPORTED


async def test_with_tool_choice_none_nothing_is_taken_for_a_call(bench):
    none = pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE)
    result = await parsed(bench, bench.parsers("hermes"), asked(WEATHER, tool_choice=none), CALL)
    assert (result.calls, result.text, result.finish) == ({}, CALL, Finish.STOP)


async def test_what_nobody_needs_parsed_is_not(bench):
    with_tools = bench.parsers("hermes")
    assert with_tools.parser_for(asked()) is None
    assert with_tools.capabilities == (pb.CAPABILITY_TOOLS,)
    neither = bench.parsers()
    assert neither.parser_for(asked()) is None
    assert neither.capabilities == ()
    reasons = bench.parsers("", "deepseek_r1")
    assert reasons.parser_for(pb.GenerateRequest(prompt="x")) is None
    assert reasons.capabilities == (pb.CAPABILITY_REASONING,)


@pytest.mark.parametrize(
    ("names", "request_", "reason", "word"),
    [
        (("", ""), asked(WEATHER), errors_pb2.ERROR_REASON_UNSUPPORTED, "TOOL_PARSER"),
        (
            ("hermes", ""),
            pb.GenerateRequest(prompt="x", tools=[WEATHER]),
            errors_pb2.ERROR_REASON_INVALID_REQUEST,
            "messages",
        ),
        (
            ("", "qwen3"),
            pb.GenerateRequest(prompt="x", reasoning=pb.Reasoning(effort=pb.REASONING_EFFORT_LOW)),
            errors_pb2.ERROR_REASON_UNSUPPORTED,
            "raw prompt",
        ),
    ],
)
async def test_what_cannot_be_parsed_is_refused(bench, names, request_, reason, word):
    with pytest.raises(Fault) as refused:
        bench.parsers(*names).parser_for(request_)
    assert refused.value.reason == reason
    assert word in str(refused.value)


async def test_a_form_and_a_demanded_call_do_not_go_together(bench):
    required = pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)
    request = asked(WEATHER, tool_choice=required, response_format=pb.ResponseFormat(regex="a+"))
    from services.local_engine.wire import sampling_of

    with pytest.raises(Fault) as refused:
        await bench.parsers("hermes").parser_for(request).shape(sampling_of(request))
    assert refused.value.violations[0].field == "response_format"


async def resumed(
    bench: Bench,
    parsers: AnswerParsers,
    request: pb.GenerateRequest,
    whole: str,
    at: int,
    sent: str,
) -> Parsed:
    """Goes on after `at` tokens of an answer, of which `sent` was delivered as text."""
    ids, before = bench.ids(whole), bench.ids("<think>")
    request.continuation.token_ids.extend(ids[:at])
    request.continuation.text = sent
    parser = parsers.parser_for(request)
    spec = await parser.shape(SamplingSpec())
    given = parser.begin(spec, before, Continuation(tuple(ids[:at]), sent))
    decode = lambda tokens: str(bench.raw.decode(list(tokens), skip_special_tokens=False))  # noqa: E731
    answer = AnswerText(decode, before, continued=given.token_ids, continued_text=given.text)
    result = Parsed()
    for number, token in enumerate(ids[at:], at):
        last = number == len(ids) - 1
        text, _, _ = answer.push([token], last=last)
        delta = Delta(0, number, text, [token], (), Finish.STOP if last else None)
        result.ids = result.ids or ids[:at]
        result.add(parser.push(delta))
    return result


async def test_a_resumed_answer_sends_what_was_not_delivered_and_no_more(bench):
    parsers, whole = bench.parsers("", "deepseek_r1"), "Hm, well.</think>The river ends in the sea."
    ids = bench.ids(whole)
    start = ids.index(bench.ids("</think>")[0]) + 1
    for at in range(start + 1, len(ids)):
        text = bench.raw.decode(ids[start:at])
        for sent in (text, text[:3]):
            result = await resumed(bench, parsers, asked(), whole, at, sent)
            assert (result.reasoning, sent + result.text) == ("", "The river ends in the sea.")
            assert result.ids == ids
    for at in range(1, len(ids)):  # its reasoning is not returned: any point will do
        hidden = asked(reasoning=pb.Reasoning(include=False))
        result = await resumed(bench, parsers, hidden, whole, at, "")
        assert (result.reasoning, result.text) == ("", "The river ends in the sea.")


async def test_an_answer_that_cannot_be_resumed_exactly_is_refused(bench):
    parsers = bench.parsers("hermes", "deepseek_r1")
    whole = f"Hm, well.</think>Look here.{CALL}"
    with pytest.raises(Fault) as refused:  # in the middle of its reasoning
        await resumed(bench, parsers, asked(), whole, 3, "")
    assert refused.value.metadata["feature"] == "continuation of reasoning"
    with pytest.raises(Fault) as refused:  # in the middle of a call
        await resumed(
            bench, parsers, asked(WEATHER), whole, len(bench.ids(whole)) - 5, "Look here."
        )
    assert refused.value.metadata["feature"] == "continuation of tools"
    with pytest.raises(Fault) as refused:  # with another text
        await resumed(bench, parsers, asked(), "Hm.</think>Look here.", 5, "Look there")
    assert refused.value.violations[0].field == "continuation.text"
    request = asked(continuation=pb.Continuation(text="Look"))
    parser = parsers.parser_for(request)
    spec = await parser.shape(SamplingSpec())
    with pytest.raises(Fault) as refused:  # after text alone, which says nothing of the reasoning
        parser.begin(spec, bench.ids("<think>"), Continuation((1,), "Look"))
    assert refused.value.metadata["feature"] == "continuation of reasoning"


async def test_a_parser_that_fails_fails_its_request_and_tells_nothing(bench, caplog):
    parsers, request = bench.parsers("hermes", "deepseek_r1"), asked(WEATHER)
    parser = parsers.parser_for(request)
    spec = await parser.shape(SamplingSpec())
    parser.begin(spec, bench.ids("<think>"), Continuation())
    with pytest.raises(Fault) as failed:
        parser.push(Delta(0, 0, "a secret", ["no token id"]))  # type: ignore[list-item]
        parser.push(Delta(0, 1, None, [5]))  # type: ignore[arg-type]
    assert failed.value.reason == errors_pb2.ERROR_REASON_INTERNAL
    assert "incident" in str(failed.value)
    assert "secret" not in caplog.text + str(failed.value)


async def test_a_parser_that_takes_too_long_fails_its_request(bench):
    parsers, request = bench.parsers("hermes"), asked(WEATHER)
    hours = iter(range(0, 100_000, 3600))
    parser = VllmAnswerParser(
        parsers._parsers,
        request,
        {},
        decode=bench.raw.decode,
        decode_all=bench.raw.decode,
        cpu_time=lambda: float(next(hours)),
    )
    spec = await parser.shape(SamplingSpec())
    parser.begin(spec, bench.ids("x"), Continuation())
    with pytest.raises(Fault) as failed:
        parser.push(Delta(0, 0, "a", bench.ids("a")))
    assert failed.value.reason == errors_pb2.ERROR_REASON_INTERNAL


HOSTILE = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "' + "x " * 12_000,
    "pythonic": "[" + "a(a=" + "a=, " * 3000,
    "llama3_json": '{"name": "f", "parameters": {"a": ' + '{"a": ' * 2000,
    "qwen3_coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\n" + "< " * 9000,
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_answer_is_parsed_or_given_up(bench, name):
    parsers, request = bench.parsers(name), asked(WEATHER)
    began, tokens = time.thread_time(), bench.ids(HOSTILE[name])
    try:
        result = await parsed(bench, parsers, request, HOSTILE[name], finish=Finish.LENGTH)
    except Fault as fault:
        ends_well = fault.reason == errors_pb2.ERROR_REASON_INTERNAL
    else:
        ends_well = result.ids == tokens
    assert ends_well
    print(f"{name}: {1e6 * (time.thread_time() - began) / len(tokens):.0f} us a token")
