"""What every implementation of ModelService keeps to: engine, router, and the cloud proxy in each
of its dialects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2, session_pb2
from services.chassis.errors import fault_from_rpc_error, reason_name
from tests.support.model_services import CLOUD, Service, code_of, service
from tests.support.waiting import BOUND_S


@pytest.fixture(params=["engine", "router", *CLOUD])
async def there(request, tmp_path) -> AsyncIterator[Service]:
    async with service(request.param, tmp_path) as found:
        yield found


def limited(tokens: int) -> pb.Sampling:
    return pb.Sampling(max_tokens=tokens)


async def test_stream_is_in_order_and_ends_once_with_its_account(there):
    chunks = await there.stream(there.request(sampling=limited(12), request_id="contract-1"))
    assert [c.request_id for c in chunks if c.request_id] == ["contract-1"]
    assert chunks[0].request_id == "contract-1"
    positions = [c.first_token for c in chunks]
    assert positions == sorted(positions)
    assert positions[0] == 0
    assert [bool(c.finish_reason) for c in chunks].count(True) == 1
    last = chunks[-1]
    assert last.finish_reason == pb.FINISH_REASON_LENGTH
    assert last.usage.source == pb.Usage.SOURCE_PROVIDER
    assert last.usage.prompt_tokens > 0
    assert last.usage.completion_tokens == 12


async def test_whole_answer_is_the_stream_joined(there):
    request = there.request(sampling=pb.Sampling(max_tokens=12, temperature=0))
    chunks = await there.stream(request)
    answer = await there.whole(request)
    (choice,) = answer.choices
    assert choice.text == "".join(c.text for c in chunks)
    assert choice.finish_reason == chunks[-1].finish_reason
    assert answer.usage.completion_tokens == chunks[-1].usage.completion_tokens


async def test_an_answer_is_judged_where_it_was_routed_and_nowhere_else(there, request):
    answer = await there.whole(there.request(sampling=limited(3)))
    said = model_pb2.FeedbackRequest(request_id=answer.request_id, rating=4)
    call = there.stub.Feedback(said, metadata=there.metadata)
    if request.node.callspec.params["there"] == "router":
        assert await call == model_pb2.FeedbackResponse()
    else:
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_stop_string_ends_the_answer_and_is_no_part_of_it(there):
    free = await there.whole(there.request(sampling=pb.Sampling(max_tokens=12, temperature=0)))
    stop = free.choices[0].text.split()[-2]
    sampling = pb.Sampling(max_tokens=12, temperature=0, stop=[stop])
    answer = await there.whole(there.request(sampling=sampling))
    assert stop not in answer.choices[0].text
    assert answer.choices[0].finish_reason == pb.FINISH_REASON_STOP


async def test_session_answers_many_and_cancels_one(there):
    async with asyncio.timeout(BOUND_S):
        call = there.stub.Session(metadata=there.metadata)
        frames = [
            session_pb2.SessionRequestFrame(
                stream=n, start=there.request(f"number {n}", sampling=limited(8))
            )
            for n in (1, 2, 3)
        ]
        await call.write(session_pb2.SessionRequest(frames=frames))
        first = await call.read()
        assert first.HasField("ready")
        assert there.model in [m.name for m in first.ready.models] or not first.ready.models
        ended: dict[int, int] = {}
        texts: dict[int, str] = {}
        while len(ended) < 3:
            message = await call.read()
            for frame in message.frames:
                assert not frame.HasField("error"), frame
                texts[frame.stream] = texts.get(frame.stream, "") + frame.chunk.text
                if frame.chunk.finish_reason:
                    ended[frame.stream] = frame.chunk.finish_reason
        call.cancel()
    assert set(ended.values()) <= {pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_STOP}
    for n in (1, 2, 3):
        alone = await there.whole(there.request(f"number {n}", sampling=limited(8)))
        assert texts[n] == alone.choices[0].text


async def refusal(work) -> tuple[str, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await work
    fault = fault_from_rpc_error(caught.value)
    return code_of(caught.value), reason_name(fault.reason), str(fault.work)


async def test_refusals_have_their_statuses(there):
    unknown = there.request()
    unknown.model = "no-such-model"
    assert await refusal(there.whole(unknown)) == ("NOT_FOUND", "MODEL_NOT_FOUND", "not_dispatched")
    bad = there.request(sampling=pb.Sampling(temperature=9, n=99))
    assert (await refusal(there.whole(bad)))[:2] == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    nobody = there.stub.Generate(there.request(), timeout=BOUND_S)
    assert (await refusal(nobody))[:2] == ("UNAUTHENTICATED", "CREDENTIAL_REJECTED")


async def test_models_are_listed_and_prompts_counted(there):
    listed = await there.stub.ListModels(
        model_pb2.ListModelsRequest(), metadata=there.metadata, timeout=BOUND_S
    )
    assert there.model in [m.name for m in listed.models]
    counted = await there.stub.CountTokens(
        model_pb2.CountTokensRequest(model=there.model, request=there.request()),
        metadata=there.metadata,
        timeout=BOUND_S,
    )
    assert counted.prompt_tokens > 0
    assert counted.source in (pb.Usage.SOURCE_PROVIDER, pb.Usage.SOURCE_ESTIMATED)
