"""The OpenAI chat codec reads: recorded streams under any split, and what breaks its promises."""

import contextlib
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.answer import (
    Ending,
    FailureKind,
    Finish,
    ProviderFailure,
    ProviderUsage,
)
from services.cloud_proxy.streams.sse import SseReader
from tests.support.openai_chat import CODEC, asked, routed

RECORDINGS = Path(__file__).parent.parent / "recordings" / "openai_chat"
ANY_SPLIT = settings(
    max_examples=200,
    suppress_health_check=[
        *settings.default.suppress_health_check,
        HealthCheck.function_scoped_fixture,
    ],
)


class Heard:
    """What a stream said, joined."""

    def __init__(self, route_, pieces: list[bytes], request=None) -> None:
        self.text: dict[int, str] = {}
        self.reasoning = ""
        self.calls: dict[int, list[str]] = {}
        self.heads: list[tuple[int, str, str]] = []
        decoder = CODEC.decoder(request or asked(), route_)
        reader = SseReader()
        events = [e for piece in pieces for e in reader.feed(piece)] + reader.close()
        for event in events:
            for delta in decoder.event(event):
                self.text[delta.choice] = self.text.get(delta.choice, "") + delta.text
                self.reasoning += delta.reasoning
                for tool in delta.tools:
                    self.calls.setdefault(tool.index, []).append(tool.arguments)
                    if tool.id or tool.name:
                        self.heads.append((tool.index, tool.id, tool.name))
        self.ending: Ending = decoder.ending()

    @property
    def arguments(self) -> list[object]:
        return [json.loads("".join(parts)) for _, parts in sorted(self.calls.items())]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    points = sorted({c % (len(data) + 1) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(points)]


def recording(name: str) -> bytes:
    return (RECORDINGS / f"{name}.sse").read_bytes()


CUTS = st.lists(st.integers(0, 10_000), max_size=40)


@ANY_SPLIT
@given(cuts=CUTS)
@pytest.mark.parametrize(
    ("provider", "name", "text", "reasoning", "finish", "usage"),
    [
        ("deepseek", "deepseek", "Grüße, 世界 🌊", "Die Frage ist 简单.", Finish.STOP,
         ProviderUsage(130, 128, 17, 9)),
        ("openai", "openai", "Hello – 你好", "", Finish.STOP, ProviderUsage(19, 0, 10, 0)),
        ("azure-openai", "azure", "Ça va bien", "", Finish.LENGTH, ProviderUsage(11, 8, 4, 0)),
        ("moonshot", "moonshot", "你好,月亮", "", Finish.STOP, ProviderUsage(22, 20, 6, 0)),
    ],
)  # fmt: skip
def test_recording_gives_the_same_answer_under_any_split(
    tmp_path, provider, name, text, reasoning, finish, usage, cuts
):
    there = routed(tmp_path, provider)
    heard = Heard(there, split(recording(name), cuts))
    assert heard.text == {0: text}
    assert heard.reasoning == reasoning
    assert heard.ending.finishes == {0: finish}
    assert heard.ending.usage == usage


@ANY_SPLIT
@given(cuts=CUTS)
def test_parallel_tool_fragments_go_by_index_and_reasoning_is_kept(tmp_path, cuts):
    there = routed(tmp_path, "deepseek")
    heard = Heard(there, split(recording("deepseek_tools"), cuts))
    assert heard.heads == [(0, "call_0_x", "weather"), (1, "call_1_y", "weather")]
    assert heard.arguments == [{"city": "Köln"}, {"city": "上海"}]
    assert heard.ending.finishes == {0: Finish.TOOL_CALLS}
    assert heard.ending.replay == {0: b"Two cities, two calls."}
    assert heard.ending.usage == ProviderUsage(40, 0, 60, 5)


def test_text_and_tools_end_with_tool_calls_and_no_arguments_are_an_object(tmp_path):
    heard = Heard(routed(tmp_path, "openai"), [recording("openai_tools")])
    assert heard.text == {0: "Let me look."}
    assert heard.arguments == [{}]
    assert heard.ending.finishes == {0: Finish.TOOL_CALLS}


def test_error_inside_a_stream_is_a_failure_after_what_came_before(tmp_path):
    there = routed(tmp_path, "openai-compatible")
    with pytest.raises(ProviderFailure) as caught:
        Heard(there, [recording("openrouter_error")])
    assert caught.value.kind is FailureKind.FAILED
    assert caught.value.http_status == 502


@pytest.mark.parametrize("name", ["deepseek", "openai", "azure", "moonshot", "deepseek_tools"])
def test_every_truncation_of_a_recording_is_a_failure(tmp_path, name):
    provider = {"azure": "azure-openai", "deepseek_tools": "deepseek"}.get(name, name)
    there = routed(tmp_path, provider)
    data = recording(name)
    # A cut inside the terminal marker itself is still a cut.
    whole = data.index(b"[DONE]") + len(b"[DONE]")
    for end in range(0, whole, 7):
        with pytest.raises(ProviderFailure) as caught:
            Heard(there, [data[:end]])
        assert caught.value.kind is FailureKind.BROKEN


def sse(*documents) -> list[bytes]:
    lines = [b"data: " + json.dumps(d).encode() + b"\n\n" for d in documents]
    return [*lines, b"data: [DONE]\n\n"]


def choice(index=0, finish=None, **delta):
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def call(index, arguments="", *, name=None, **more):
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"function": function, **({} if index is None else {"index": index}), **more}


@pytest.mark.parametrize(
    ("provider", "reason", "expected"),
    [
        ("openai", "stop", Finish.STOP),
        ("openai", "length", Finish.LENGTH),
        ("openai", "content_filter", Finish.CONTENT_FILTER),
        ("simulator", "sensitive", Finish.CONTENT_FILTER),
    ],
)
def test_finish_reasons(tmp_path, provider, reason, expected):
    heard = Heard(routed(tmp_path, provider), sse(choice(content="a"), choice(finish=reason)))
    assert heard.ending.finishes == {0: expected}


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        ("deepseek", "insufficient_system_resource"),
        ("simulator", "network_error"),
        ("openai", "never_heard_of"),
        ("openai", "function_call"),
    ],
)
def test_failing_and_unknown_finish_reasons_are_failures(tmp_path, provider, reason):
    with pytest.raises(ProviderFailure) as caught:
        Heard(routed(tmp_path, provider), sse(choice(content="a"), choice(finish=reason)))
    assert caught.value.code == reason


def test_length_after_tools_stays_length_and_half_arguments_are_allowed(tmp_path):
    there = routed(tmp_path, "openai")
    cut = call(0, '{"a', id="c", name="f")
    heard = Heard(there, sse(choice(tool_calls=[cut]), choice(finish="length")))
    assert heard.ending.finishes == {0: Finish.LENGTH}


@pytest.mark.parametrize(
    "events",
    [
        [choice(tool_calls=[call(0, '{"a', id="c", name="f")]), choice(finish="tool_calls")],
        [choice(content="a"), choice(finish="tool_calls")],
        [choice(tool_calls=[call(0, "{}", id="c")]), choice(finish="tool_calls")],
        [choice(tool_calls=[call(999, "{}", id="c", name="f")]), choice(finish="tool_calls")],
        [choice(index=3, content="a"), choice(finish="stop")],
        [choice(content="a")],
        [["no object"]],
        [{"choices": ["no object"]}],
    ],
)
def test_answers_that_break_their_promises_are_failures(tmp_path, events):
    with pytest.raises(ProviderFailure) as caught:
        Heard(routed(tmp_path, "openai"), sse(*events))
    assert caught.value.kind is FailureKind.BROKEN


def test_tool_fragments_without_index_follow_their_ids(tmp_path):
    heard = Heard(
        routed(tmp_path, "openai"),
        sse(
            choice(tool_calls=[call(None, '{"a":', id="x", name="f")]),
            choice(tool_calls=[call(None, "1}")]),
            choice(tool_calls=[call(None, '{"b":2}', id="y", name="g")]),
            choice(finish="stop"),
        ),
    )
    assert heard.heads == [(0, "x", "f"), (1, "y", "g")]
    assert heard.arguments == [{"a": 1}, {"b": 2}]


def test_choices_are_kept_apart_and_each_must_finish(tmp_path):
    there = routed(tmp_path, "openai")
    request = asked(sampling=pb.Sampling(n=2))
    events = [choice(1, content="b"), choice(0, content="a"), choice(1, finish="length")]
    with pytest.raises(ProviderFailure):
        Heard(there, sse(*events), request)
    heard = Heard(there, sse(*events, choice(0, finish="stop")), request)
    assert heard.text == {0: "a", 1: "b"}
    assert heard.ending.finishes == {0: Finish.STOP, 1: Finish.LENGTH}


def test_refusal_is_told_as_text_and_content_filter(tmp_path):
    there = routed(tmp_path, "openai")
    heard = Heard(there, sse(choice(refusal="I will not."), choice(finish="stop")))
    assert heard.text == {0: "I will not."}
    assert heard.ending.finishes == {0: Finish.CONTENT_FILTER}


def test_whole_answer_without_stream(tmp_path):
    message = {"role": "assistant", "content": "hi", "tool_calls": None, "reasoning_content": "h"}
    body = {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
    decoder = CODEC.decoder(asked(), routed(tmp_path, "deepseek"))
    (delta,) = decoder.whole(json.dumps(body).encode())
    assert (delta.text, delta.reasoning) == ("hi", "h")
    assert decoder.ending().usage == ProviderUsage(3, 0, 1, 0)


@ANY_SPLIT
@given(data=st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_provider_failure(tmp_path, data):
    there = routed(tmp_path, "openai")
    with pytest.raises(ProviderFailure):
        Heard(there, [b"data: " + data])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["choices", "delta", "index", "usage", "error", "tool_calls", "function", "name", "id",
             "arguments", "content", "finish_reason", "prompt_tokens", "completion_tokens", "code"]
        ),
        inner,
        max_size=6,
    ),
    max_leaves=30,
)  # fmt: skip


@ANY_SPLIT
@given(document=JSON)
def test_no_json_raises_anything_but_a_provider_failure(tmp_path, document):
    there = routed(tmp_path, "openai")
    body = json.dumps(document).encode()
    with contextlib.suppress(ProviderFailure):
        Heard(there, [b"data: " + body + b"\n\ndata: [DONE]\n\n"])
    assert CODEC.decode_error(500, {}, body).kind is not FailureKind.REFUSED_REQUEST
