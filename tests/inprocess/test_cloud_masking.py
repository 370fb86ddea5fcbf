"""Masking through the real proxy: the provider sees no entity, and the caller gets its own back."""

import json
import logging

import aiohttp
import pytest

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2, session_pb2
from services.chassis.errors import Fault, reason_name
from tests.support.auth import bearer
from tests.support.cloud import Proxy, ask, cloud_proxy
from tests.support.entities import CARD, CN_ID, EMAIL, KEY, MOBILE, PEM, VALUES
from tools.provider_simulator.answers import ECHO, LABEL

EVERYTHING = f"{ECHO}: " + " ; ".join(VALUES) + f" and {EMAIL} again"


@pytest.fixture
async def proxy(tmp_path):
    async with cloud_proxy(tmp_path) as found:
        yield found


async def seen(proxy: Proxy) -> list[dict]:
    """The bodies of requests at the provider, none of which holds an entity."""
    bodies = (await proxy.provider.state())["requests"]
    text = json.dumps(bodies, ensure_ascii=False)
    for value in VALUES:
        assert value not in text
        assert json.dumps(value)[1:-1] not in text
    return bodies


@pytest.mark.parametrize("model", ["cloud-chat", "cloud-whole", "cloud-reasoner"])
async def test_the_provider_sees_none_of_it_and_the_caller_all(proxy, model):
    answer = await proxy.answer(ask(EVERYTHING, model=model))
    (body,) = await seen(proxy)
    assert body["messages"][0]["content"].count("[EMAIL_1_") == 2
    (choice,) = answer.choices
    assert choice.text == f"{LABEL} {EVERYTHING}"
    if model == "cloud-reasoner":
        assert choice.reasoning.endswith(EVERYTHING)
    assert answer.receipt.masked_entities == len(VALUES)
    assert answer.usage.source == pb.Usage.SOURCE_PROVIDER


async def test_each_choice_of_a_stream_is_whole(proxy):
    chunks, ended = await proxy.chunks(ask(EVERYTHING, sampling=pb.Sampling(n=3)))
    assert ended is None
    for number in range(3):
        own = [c for c in chunks if c.index == number]
        assert "".join(c.text for c in own) == f"{LABEL} {EVERYTHING}"
        starts = [c.first_token for c in own]
        assert starts[0] == 0
        assert starts == sorted(set(starts))
    assert [c.receipt.masked_entities for c in chunks if c.HasField("receipt")] == [len(VALUES)]


async def test_every_part_of_a_request_is_masked(proxy):
    call = pb.ToolCall(id="c", name="send", arguments=json.dumps({"to": EMAIL, "key": PEM}))
    schema = json.dumps({"type": "object", "properties": {"to": {"description": f"as {EMAIL}"}}})
    request = ask(
        f"{ECHO} and call send to {MOBILE}",
        tools=[pb.Tool(name="send", description=f"asks {CARD}", parameters_json_schema=schema)],
        sampling=pb.Sampling(stop=[KEY]),
    )
    request.messages.insert(
        0, pb.Message(role=pb.ROLE_SYSTEM, content=[pb.ContentPart(text=f"You are {EMAIL}")])
    )
    request.messages.add(role=pb.ROLE_ASSISTANT, tool_calls=[call])
    result = pb.ContentPart(text=json.dumps({"id": CN_ID, "key": PEM}))
    request.messages.add(role=pb.ROLE_TOOL, tool_call_id="c", content=[result])
    answer = await proxy.answer(request)
    (body,) = await seen(proxy)
    system, user, assistant, tool = body["messages"]
    arguments = json.loads(assistant["tool_calls"][0]["function"]["arguments"])
    assert system["content"] == f"You are {arguments['to']}"
    assert json.loads(tool["content"])["key"] == arguments["key"]
    function = body["tools"][0]["function"]
    assert function["parameters"]["properties"]["to"]["description"] == f"as {arguments['to']}"
    assert "[PHONE_1_" in user["content"]
    assert "[CARD_1_" in function["description"]
    assert body["stop"][0].startswith("[SECRET_")
    # The simulator's argument is the whole prompt: what was JSON there is quoted JSON here.
    (made,) = answer.choices[0].tool_calls
    asked = json.loads(made.arguments)["asked"]
    assert f"You are {EMAIL} {ECHO} and call send to {MOBILE}" in asked
    assert CN_ID in asked
    assert PEM in asked
    assert "_" not in asked.replace(PEM, "")


async def test_values_in_structured_answers_leave_them_valid(proxy):
    wanted = pb.ResponseFormat(json_object=pb.ResponseFormat.JsonObject())
    answer = await proxy.answer(ask(EVERYTHING, response_format=wanted))
    await seen(proxy)
    assert json.loads(answer.choices[0].text)["said"] == EVERYTHING


async def test_a_continued_answer_keeps_its_values(proxy):
    cut = EVERYTHING.index(MOBILE) + len(MOBILE)
    delivered = f"{LABEL} {EVERYTHING[:cut]}"
    request = ask(EVERYTHING, continuation=pb.Continuation(text=delivered))
    answer = await proxy.answer(request)
    bodies = await seen(proxy)
    assert bodies[0]["messages"][-1]["prefix"] is True
    assert delivered + answer.choices[0].text == f"{LABEL} {EVERYTHING}"


async def test_a_stop_string_stops_at_its_value(proxy):
    asked = f"{ECHO}: to {EMAIL} and on"
    answer = await proxy.answer(ask(asked, sampling=pb.Sampling(stop=[EMAIL])))
    assert answer.choices[0].text == f"{LABEL} {ECHO}: to "


async def test_an_answer_that_ends_within_a_placeholder_ends_with_what_came(proxy):
    text = f"{LABEL} {ECHO} {EMAIL}"
    pieces = (len(f"{LABEL} {ECHO} ") + 8) // 3
    answer = await proxy.answer(ask(f"{ECHO} {EMAIL}", sampling=pb.Sampling(max_tokens=pieces)))
    choice = answer.choices[0]
    assert choice.finish_reason == pb.FINISH_REASON_LENGTH
    assert len(choice.text) == pieces * 3
    assert choice.text == text[: text.index(EMAIL)] + "[EMAIL"


async def test_nothing_of_the_values_is_in_logs_metrics_or_errors(proxy, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    await proxy.answer(ask(EVERYTHING))
    await proxy.provider.fault("cut", after=40)
    chunks, ended = await proxy.chunks(ask(EVERYTHING))
    assert chunks
    assert ended is not None
    # Providers quote what they refuse.
    quoted = (await seen(proxy))[0]["messages"][0]["content"]
    await proxy.provider.fault("4xx", message=f"invalid: {quoted}")
    with pytest.raises(Fault) as refused:
        await proxy.answer(ask(EVERYTHING))
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://{proxy.host.http_address}/metrics") as response,
    ):
        metrics = await response.text()
    counted = [line for line in metrics.splitlines() if "entities_masked" in line]
    for kind, count in (("email", 3), ("phone", 6), ("card", 3), ("cn-id", 3), ("secret", 9)):
        lines = [line for line in counted if f'anabranch_pii_kind="{kind}"' in line]
        assert [float(line.rsplit(" ", 1)[1]) for line in lines] == [count]
    records = "".join(f"{r.getMessage()} {r.__dict__} {r.exc_text}" for r in caplog.records)
    assert "'masked_entities': 8" in records
    out = capfd.readouterr()
    said = records + metrics + out.out + out.err + repr((ended, refused.value))
    for value in VALUES:
        assert value not in said


async def test_counts_and_estimates_are_those_of_the_request_as_it_came(tmp_path):
    counted, estimated = [], []
    for mask in (("email", "phone", "card", "cn-id", "secret"), ("none",)):
        async with cloud_proxy(tmp_path, mask=mask) as proxy:
            request = ask(EVERYTHING)
            answer = await proxy.stub.CountTokens(
                model_pb2.CountTokensRequest(model=request.model, request=request),
                metadata=proxy.metadata,
            )
            counted.append(answer.prompt_tokens)
            await proxy.provider.fault("no_usage")
            usage = (await proxy.answer(request)).usage
            assert usage.source == pb.Usage.SOURCE_ESTIMATED
            estimated.append(usage.prompt_tokens)
    assert counted[0] == counted[1] == estimated[0] == estimated[1]


# Who decides what is masked


async def relayed(proxy: Proxy, request: pb.GenerateRequest, kinds: list[int]) -> tuple[str, int]:
    """As a router asks: text of the answer, or of the error, and how many were masked."""
    frame = session_pb2.SessionRequestFrame(
        stream=1,
        start=request,
        on_behalf_of=session_pb2.Caller(tenant="shop", client_id="till"),
        mask=kinds,
    )

    async def requests():
        yield session_pb2.SessionRequest(frames=[frame])

    text, entities = "", 0
    metadata = bearer(proxy.keys.token("relay"))
    async for message in proxy.stub.Session(requests(), metadata=metadata, timeout=20):
        for got in message.frames:
            text += got.chunk.text or got.error.message
            entities += got.chunk.receipt.masked_entities
    return text, entities


async def test_a_router_may_ask_for_more_than_the_proxy_masks(tmp_path):
    asked = f"{ECHO} {EMAIL} {MOBILE}"
    async with cloud_proxy(tmp_path, mask=("phone",)) as proxy:
        for kinds, masked in (([], 1), ([pb.PII_KIND_EMAIL], 2), ([pb.PII_KIND_CARD], 1)):
            assert await relayed(proxy, ask(asked), kinds) == (f"{LABEL} {asked}", masked)
        sent = [b["messages"][0]["content"] for b in (await proxy.provider.state())["requests"]]
        assert [EMAIL in text for text in sent] == [True, False, True]
        assert not any(MOBILE in text for text in sent)


async def test_a_kind_that_the_proxy_does_not_know_keeps_the_request_here(proxy):
    said, _ = await relayed(proxy, ask("hello"), [99])
    assert "not known here" in said
    assert (await proxy.provider.state())["seen"] == 0


async def test_what_cannot_be_masked_stays_here(proxy):
    with pytest.raises(Fault) as refused:
        await proxy.answer(ask(EMAIL, sampling=pb.Sampling(stop=["_"])))
    assert reason_name(refused.value.reason) == "UNSUPPORTED"
    assert refused.value.metadata["feature"] == "sampling.stop"
    assert (await proxy.provider.state())["seen"] == 0


async def test_without_a_mask_prompts_leave_as_they_are(tmp_path):
    async with cloud_proxy(tmp_path, mask=("none",)) as proxy:
        answer = await proxy.answer(ask(EVERYTHING))
        assert answer.choices[0].text == f"{LABEL} {EVERYTHING}"
        assert not answer.receipt.masked_entities
        (body,) = (await proxy.provider.state())["requests"]
        assert body["messages"][0]["content"] == EVERYTHING
