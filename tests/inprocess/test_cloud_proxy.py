"""The cloud proxy against the provider simulator: answers, accounts, refusals, cancellation."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import aiohttp
import grpc
import pytest

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2, session_pb2
from services.chassis.errors import Fault, Work, reason_name
from tests.support.cloud import Proxy, ask, cloud_proxy
from tests.support.provider import KEY
from tests.support.waiting import BOUND_S

LABEL = "[provider simulator]"


@pytest.fixture
async def proxy(tmp_path) -> AsyncIterator[Proxy]:
    # Patient: what ends in these tests ends because it is cancelled, not because it takes long.
    patience = {"first_token_timeout": 600.0, "inter_token_timeout": 600.0}
    async with cloud_proxy(tmp_path, **patience) as found:
        yield found


async def test_streamed_answer_is_whole_counted_and_priced(proxy):
    chunks, ended = await proxy.chunks(ask("one two three", request_id="r-1"))
    assert ended is None
    text = "".join(c.text for c in chunks)
    assert text.startswith(LABEL)
    assert len(text.split()) == 18
    words = 0
    for chunk in chunks:
        assert chunk.first_token == words
        words += len(chunk.text.split())
    assert [c.request_id for c in chunks if c.request_id] == ["r-1"]
    assert chunks[0].request_id == "r-1"
    assert [c.finish_reason for c in chunks if c.finish_reason] == [pb.FINISH_REASON_STOP]
    last = chunks[-1]
    assert last.usage == pb.Usage(
        prompt_tokens=3, completion_tokens=18, source=pb.Usage.SOURCE_PROVIDER
    )
    (attempt,) = last.receipt.provider_attempts
    assert (attempt.provider, attempt.model, attempt.error) == ("simulator", "sim-chat", "")
    assert attempt.http_status == 200
    assert attempt.duration.ToNanoseconds() > 0
    last.receipt.ClearField("provider_attempts")
    assert last.receipt == pb.RouteReceipt(
        tier=pb.TIER_CLOUD, served_model="sim-chat", cost_microusd=3 * 1 + 18 * 2
    )


async def test_cached_prompt_tokens_are_counted_once_and_priced_lower(proxy):
    answer = await proxy.answer(ask(" ".join(["word"] * 100)))
    assert answer.usage.prompt_tokens == 100
    assert answer.usage.cached_prompt_tokens == 50
    # 50 fresh at 1, 50 cached at 0.1, 18 out at 2 micro-USD.
    assert answer.receipt.cost_microusd == 50 + 5 + 36


async def test_same_question_same_answer_by_alias_whole_and_streamed(proxy):
    first = await proxy.answer(ask())
    second = await proxy.answer(ask(model="chat"))
    whole = await proxy.answer(ask(model="cloud-whole"))
    assert first.choices[0].text == second.choices[0].text == whole.choices[0].text
    assert first.usage == whole.usage
    seen = (await proxy.provider.state())["requests"]
    assert [bool(body.get("stream")) for body in seen] == [True, True, False]


async def test_reasoning_is_kept_apart_counted_and_can_be_left_out(proxy):
    answer = await proxy.answer(ask(model="cloud-reasoner"))
    assert answer.choices[0].reasoning == "thinking as a simulator does: not at all."
    assert answer.choices[0].text.startswith(LABEL)
    assert answer.usage.reasoning_tokens == 8
    hidden = ask(model="cloud-reasoner", reasoning=pb.Reasoning(include=False))
    answer = await proxy.answer(hidden)
    assert answer.choices[0].reasoning == ""
    assert answer.usage.reasoning_tokens == 8


async def test_parallel_tools_with_text_end_with_tool_calls_and_carry_state(proxy):
    tools = [pb.Tool(name="weather"), pb.Tool(name="clock")]
    asked = ask("call weather and call clock", model="cloud-reasoner", tools=tools)
    choice = (await proxy.answer(asked)).choices[0]
    assert choice.text == f"{LABEL} calling"
    assert choice.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    assert [(c.index, c.id, c.name) for c in choice.tool_calls] == [
        (0, "call_sim_0", "weather"),
        (1, "call_sim_1", "clock"),
    ]
    for call in choice.tool_calls:
        assert json.loads(call.arguments) == {"asked": "call weather and call clock"}
    assert [s.provider for s in choice.reasoning_state] == ["simulator"]
    # The state goes back with the next turn.
    turn = pb.Message(
        role=pb.ROLE_ASSISTANT,
        tool_calls=choice.tool_calls,
        reasoning_state=choice.reasoning_state,
    )
    asked.messages.append(turn)
    await proxy.answer(asked)
    sent = (await proxy.provider.state())["requests"][-1]["messages"][-1]
    assert sent["reasoning_content"] == "thinking as a simulator does: not at all."


async def test_call_without_arguments_is_the_empty_object(proxy):
    tools = [pb.Tool(name="clock")]
    answer = await proxy.answer(ask("call clock without arguments", tools=tools))
    assert [c.arguments for c in answer.choices[0].tool_calls] == ["{}"]


async def test_several_choices_each_finish_and_usage_comes_last(proxy):
    chunks, _ = await proxy.chunks(ask(sampling=pb.Sampling(n=3)))
    finished = [c.index for c in chunks if c.finish_reason]
    assert finished == [0, 1, 2]
    assert [c.HasField("usage") for c in chunks[-3:]] == [False, False, True]
    assert chunks[-1].usage.completion_tokens == 3 * 18


async def test_parameters_arrive_and_limits_are_told(proxy):
    sampling = pb.Sampling(temperature=0, top_p=0.9, seed=7, max_tokens=4)
    answer = await proxy.answer(ask(sampling=sampling))
    assert answer.choices[0].finish_reason == pb.FINISH_REASON_LENGTH
    body = (await proxy.provider.state())["requests"][0]
    assert (body["temperature"], body["top_p"], body["seed"], body["max_tokens"]) == (0, 0.9, 7, 4)


async def test_structured_output(proxy):
    wanted = pb.ResponseFormat(json_schema='{"type": "object"}')
    answer = await proxy.answer(ask(response_format=wanted))
    assert json.loads(answer.choices[0].text)["simulator"] is True


async def test_continuation_by_text_goes_on_exactly_after_it(proxy):
    whole = (await proxy.answer(ask())).choices[0].text
    cut = len(LABEL) + 10
    asked = ask(continuation=pb.Continuation(text=whole[:cut], token_ids=[1, 2, 3]))
    chunks, ended = await proxy.chunks(asked)
    assert ended is None
    assert whole[:cut] + "".join(c.text for c in chunks) == whole
    assert chunks[0].first_token == 3
    assert chunks[-1].usage.source == pb.Usage.SOURCE_ESTIMATED


async def test_session_carries_many_requests_with_load(proxy):
    frames = [session_pb2.SessionRequestFrame(stream=n, start=ask(f"ask {n}")) for n in (1, 2, 3)]

    async def requests():
        yield session_pb2.SessionRequest(frames=frames)

    texts: dict[int, str] = {}
    ready, load, lasts = session_pb2.SessionReady(), session_pb2.LoadReport(), 0
    async for message in proxy.stub.Session(requests(), metadata=proxy.metadata, timeout=BOUND_S):
        if message.HasField("ready"):
            ready = message.ready
        if message.HasField("load"):
            load = message.load
        for frame in message.frames:
            texts[frame.stream] = texts.get(frame.stream, "") + frame.chunk.text
            lasts += frame.last
    assert ready.tier == pb.TIER_CLOUD
    assert ready.backend_id == proxy.host.instance_id
    assert "cloud-chat" in [m.name for m in ready.models]
    assert load.max_running == 1024
    assert lasts == 3
    for number in (1, 2, 3):
        assert texts[number] == (await proxy.answer(ask(f"ask {number}"))).choices[0].text


async def test_listing_counting_and_embedding(proxy):
    listed = await proxy.stub.ListModels(model_pb2.ListModelsRequest(), metadata=proxy.metadata)
    chat = next(m for m in listed.models if m.name == "cloud-chat")
    assert chat.tiers == [pb.TIER_CLOUD]
    assert chat.aliases == ["chat"]
    assert (chat.provider, chat.served_model) == ("simulator", "sim-chat")
    assert pb.CAPABILITY_RESUME_TEXT in chat.capabilities
    counted = await proxy.stub.CountTokens(
        model_pb2.CountTokensRequest(model="cloud-chat", request=ask("x" * 40)),
        metadata=proxy.metadata,
    )
    assert counted.prompt_tokens == 14
    assert counted.context_length == 32768
    assert counted.source == pb.Usage.SOURCE_ESTIMATED


def refused(fault: Fault) -> tuple[str, str, Work]:
    return reason_name(fault.reason), fault.code.name, fault.work


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (ask(routing=pb.Routing(residency=pb.RESIDENCY_LOCAL_ONLY)),
         ("ACCESS_DENIED", "PERMISSION_DENIED", Work.NOT_DISPATCHED)),
        (ask(model="nobody"), ("MODEL_NOT_FOUND", "NOT_FOUND", Work.NOT_DISPATCHED)),
        (ask(sampling=pb.Sampling(top_k=3)),
         ("UNSUPPORTED", "UNIMPLEMENTED", Work.NOT_DISPATCHED)),
        (ask(continuation=pb.Continuation(token_ids=[1])),
         ("UNSUPPORTED", "UNIMPLEMENTED", Work.NOT_DISPATCHED)),
        (ask(sampling=pb.Sampling(temperature=9)),
         ("INVALID_REQUEST", "INVALID_ARGUMENT", Work.NOT_DISPATCHED)),
        (ask(routing=pb.Routing(max_cost_microusd=1)),
         ("UNSUPPORTED", "UNIMPLEMENTED", Work.NOT_DISPATCHED)),
        (pb.GenerateRequest(model="cloud-chat", messages=[pb.Message(
            role=pb.ROLE_USER, content=[pb.ContentPart(image=pb.Image(
                uri="https://evil.example/x.png", media_type="image/png"))])]),
         ("INVALID_REQUEST", "INVALID_ARGUMENT", Work.NOT_DISPATCHED)),
    ],
)  # fmt: skip
async def test_refused_here_and_never_sent(proxy, request_, expected):
    with pytest.raises(Fault) as caught:
        await proxy.answer(request_)
    assert refused(caught.value) == expected
    assert (await proxy.provider.state())["seen"] == 0


async def test_budget_of_a_request_caps_its_output(proxy):
    asked = ask(routing=pb.Routing(max_cost_microusd=30))
    answer = await proxy.answer(asked)
    assert answer.choices[0].finish_reason == pb.FINISH_REASON_LENGTH
    assert 0 < answer.receipt.cost_microusd <= 30


async def test_no_more_than_max_in_flight(tmp_path):
    async with cloud_proxy(tmp_path, max_in_flight=1) as proxy:
        await proxy.provider.fault("hang")
        running = asyncio.create_task(proxy.chunks(ask()))
        await proxy.provider.until(lambda s: s["open"] == 1)
        with pytest.raises(Fault) as caught:
            await proxy.answer(ask())
        assert refused(caught.value)[:2] == ("OVERLOADED", "RESOURCE_EXHAUSTED")
        assert caught.value.retry_after == 1.0
        running.cancel()
        await proxy.provider.until(lambda s: s["open"] == 0)
        await proxy.answer(ask())


@pytest.mark.parametrize("fault", ["hang", "stall", "keepalive_only"])
async def test_cancel_ends_the_stream_and_closes_the_providers_socket(proxy, fault):
    await proxy.provider.fault(fault)
    asked: asyncio.Queue[session_pb2.SessionRequest | None] = asyncio.Queue()
    await asked.put(
        session_pb2.SessionRequest(
            frames=[session_pb2.SessionRequestFrame(stream=1, start=ask("a b c d"))]
        )
    )

    async def requests():
        while (message := await asked.get()) is not None:
            yield message

    chunks = []
    async for message in proxy.stub.Session(requests(), metadata=proxy.metadata, timeout=BOUND_S):
        chunks += [f.chunk for f in message.frames]
        if message.HasField("ready"):
            await proxy.provider.until(lambda s: s["open"] == 1)
            cancel = session_pb2.SessionRequestFrame(stream=1, cancel=session_pb2.SessionCancel())
            if fault != "stall":
                await asked.put(session_pb2.SessionRequest(frames=[cancel]))
        if len(chunks) == 2 and fault == "stall":
            await asked.put(session_pb2.SessionRequest(frames=[cancel]))
        if chunks and chunks[-1].finish_reason:
            await asked.put(None)
    assert chunks[-1].finish_reason == pb.FINISH_REASON_CANCELLED
    assert chunks[-1].usage.source == pb.Usage.SOURCE_PARTIAL
    assert chunks[-1].usage.prompt_tokens > 0
    # "[provider simulator]", 20 bytes in two pieces, is estimated at 5 tokens.
    assert chunks[-1].usage.completion_tokens == (5 if fault == "stall" else 0)
    await proxy.provider.until(lambda s: s["open"] == 0 and s["aborted"] == 1)


async def test_caller_that_leaves_closes_the_providers_socket(proxy):
    await proxy.provider.fault("stall")
    call = proxy.stub.StreamGenerate(ask(), metadata=proxy.metadata)
    await call.read()
    call.cancel()
    await proxy.provider.until(lambda s: s["open"] == 0 and s["aborted"] == 1)


async def test_deadline_frees_the_provider(proxy):
    await proxy.provider.fault("hang")
    asked = ask()
    asked.timeout.FromMilliseconds(200)
    _, ended = await proxy.chunks(asked)
    assert reason_name(ended.reason) == "DEADLINE_EXCEEDED"
    await proxy.provider.until(lambda s: s["open"] == 0 and s["aborted"] == 1)


async def test_connections_are_used_again(proxy):
    for _ in range(5):
        await proxy.answer(ask())
    assert (await proxy.provider.state())["connections"] == 1


async def test_metrics_count_tokens_and_cost(proxy):
    await proxy.answer(ask())
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://{proxy.host.http_address}/metrics") as response,
    ):
        text = await response.text()
    assert "anabranch_cloud_cost" in text
    assert "gen_ai_client_token_usage" in text


async def test_key_is_in_no_log_and_no_error(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    # The simulator refuses the key, and quotes it, as real providers do.
    async with cloud_proxy(tmp_path, accepted=("another-key",)) as proxy:
        with pytest.raises(Fault) as caught:
            await proxy.answer(ask())
        fault = caught.value
        assert refused(fault) == ("PROVIDER_ERROR", "UNAVAILABLE", Work.NOT_DISPATCHED)
        assert fault.metadata == {
            "provider": "simulator",
            "http_status": "401",
            "provider_code": "invalid_api_key invalid_api_key",
        }
        said = fault.message + repr(fault) + str(fault.metadata)
        # Rejected keys are left alone for a while: nothing is sent the second time.
        with pytest.raises(Fault):
            await proxy.answer(ask())
        assert (await proxy.provider.state())["seen"] == 1
    out = capfd.readouterr()
    records = "".join(f"{r.getMessage()} {r.__dict__} {r.exc_text}" for r in caplog.records)
    assert "attempt failed" in records
    for text in (said, records, out.out, out.err):
        assert KEY not in text


async def test_limited_key_gives_way_to_the_next_of_its_pool(tmp_path):
    keys = "simulator=key-one,simulator=key-two"
    async with cloud_proxy(tmp_path, keys=keys, accepted=("key-one", "key-two")) as proxy:
        await proxy.provider.fault("429", retry_after=30)
        answer = await proxy.answer(ask())
        assert answer.choices[0].text.startswith(LABEL)
        assert (await proxy.provider.state())["seen"] == 2


async def test_not_even_tokens_of_what_must_stay_are_counted_here(proxy):
    request = ask(routing=pb.Routing(residency=pb.RESIDENCY_LOCAL_ONLY))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await proxy.stub.CountTokens(
            model_pb2.CountTokensRequest(model=request.model, request=request),
            metadata=proxy.metadata,
        )
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_key_is_not_even_told_in_part_where_a_providers_text_is_cut(proxy):
    said = "x" * 285 + KEY
    await proxy.provider.fault("4xx", status=400, message=said, code=said[200:], param=KEY)
    with pytest.raises(Fault) as caught:
        await proxy.answer(ask())
    told = repr((caught.value.message, caught.value.metadata, caught.value.violations))
    assert "xxx" in told
    assert KEY[:6] not in told
