"""Generate and StreamGenerate before a scripted handler: what is joined, bounded and stopped."""

import asyncio

import grpc
import pytest

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, fault_from_rpc_error
from tests.inprocess.test_session_edges import ask, scene
from tests.support.auth import until


def step(position: int, *, index: int = 0, text: str = "") -> bytes:
    return pb.GenerateChunk(
        index=index, first_token=position, text=text or f"{position} ", token_ids=[position]
    ).SerializeToString()


def end(position: int, index: int = 0) -> bytes:
    chunk = pb.GenerateChunk(
        index=index, first_token=position, finish_reason=pb.FINISH_REASON_STOP, matched_stop="!"
    )
    chunk.usage.completion_tokens = position
    chunk.receipt.backend_id = "b"
    return chunk.SerializeToString()


async def read_all(call) -> list[pb.GenerateChunk]:
    chunks = []
    while (chunk := await call.read()) is not grpc.aio.EOF:
        chunks.append(chunk)
    return chunks


async def test_what_is_ready_in_one_turn_leaves_in_one_message_for_each_choice():
    async with scene() as s:
        call = s.stub.StreamGenerate(ask(), metadata=s.auth)
        outlet = await s.handler.next()
        for position in range(500):
            outlet.chunk(step(position), last=False, tokens=1)
            outlet.chunk(step(position, index=1), last=False, tokens=1)
        outlet.chunk(end(500, index=1), last=False, tokens=0)
        outlet.chunk(end(500), last=True, tokens=0)
        chunks = await read_all(call)
    assert [chunk.index for chunk in chunks] == [1, 0]
    for chunk in chunks:
        assert list(chunk.token_ids) == list(range(500))
        assert chunk.text == "".join(f"{n} " for n in range(500))
        assert (chunk.first_token, chunk.finish_reason) == (0, pb.FINISH_REASON_STOP)
        assert chunk.matched_stop == "!"
    assert chunks[-1].usage.completion_tokens == 500
    assert chunks[-1].receipt.backend_id == "b"


async def test_a_chunk_that_comes_alone_is_passed_on_as_it_is():
    async with scene() as s:
        raw = s.channel.unary_stream("/anabranch.v1.ModelService/StreamGenerate")
        call = raw(ask().SerializeToString(), metadata=s.auth)
        outlet = await s.handler.next()
        outlet.chunk(b"\xff no chunk", last=False, tokens=1)
        assert await call.read() == b"\xff no chunk"
        outlet.chunk(b"\xff one", last=False, tokens=1)
        outlet.chunk(b"\xff two", last=True, tokens=1)
        assert [await call.read(), await call.read()] == [b"\xff one", b"\xff two"]
        assert await call.read() is grpc.aio.EOF


async def test_a_caller_that_pauses_gets_all_of_it_in_few_messages():
    tokens = 20_000
    async with scene() as s:
        call = s.stub.StreamGenerate(ask(), metadata=s.auth)
        outlet = await s.handler.next()
        for position in range(tokens):
            outlet.chunk(step(position, text="word "), last=False, tokens=1)
            if position % 50 == 0:
                await asyncio.sleep(0)
        outlet.chunk(end(tokens), last=True, tokens=0)
        chunks = await read_all(call)
    assert [n for chunk in chunks for n in chunk.token_ids] == list(range(tokens))
    assert "".join(chunk.text for chunk in chunks) == "word " * tokens
    assert chunks[-1].finish_reason == pb.FINISH_REASON_STOP
    assert len(chunks) < tokens / 20


async def test_more_than_the_bound_stops_the_work_though_the_caller_never_reads():
    async with scene(write_stall=300.0, stream_buffer_bytes=100_000) as s:
        call = s.stub.StreamGenerate(ask(), metadata=s.auth)
        outlet = await s.handler.next()
        for position in range(1_000_000):
            outlet.chunk(step(position, text="x" * 1000), last=False, tokens=1)
            if position % 50 == 0:
                await asyncio.sleep(0)
            if s.handler.cancelled:
                break
        assert s.handler.cancelled == [outlet]
        assert not len(s.host.model_service.requests)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_all(call)
        fault = fault_from_rpc_error(caught.value)
        assert fault.reason == errors_pb2.ERROR_REASON_SLOW_READER


async def test_nothing_follows_what_was_lost_when_the_bound_was_passed():
    async with scene(stream_buffer_bytes=1_000) as s:
        call = s.stub.StreamGenerate(ask(), metadata=s.auth)
        outlet = await s.handler.next()
        for position in range(3):
            outlet.chunk(step(position, text="x" * 900), last=False, tokens=1)
        outlet.chunk(end(3), last=True, tokens=0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while (chunk := await call.read()) is not grpc.aio.EOF:
                assert not chunk.finish_reason
        fault = fault_from_rpc_error(caught.value)
        assert fault.reason == errors_pb2.ERROR_REASON_SLOW_READER


async def test_one_chunk_may_be_larger_than_the_bound():
    async with scene(stream_buffer_bytes=1_000) as s:
        call = s.stub.StreamGenerate(ask(), metadata=s.auth)
        outlet = await s.handler.next()
        outlet.chunk(step(0), last=False, tokens=1)
        outlet.chunk(step(1, text="x" * 100_000), last=False, tokens=1)
        outlet.chunk(end(2), last=True, tokens=0)
        chunks = await read_all(call)
    assert sum(len(chunk.text) for chunk in chunks) == 100_002
    assert chunks[-1].finish_reason == pb.FINISH_REASON_STOP


async def test_what_came_before_a_failure_is_delivered():
    async with scene() as s:
        call = s.stub.StreamGenerate(ask(), metadata=s.auth)
        outlet = await s.handler.next()
        outlet.chunk(step(0), last=False, tokens=1)
        outlet.chunk(step(1), last=False, tokens=1)
        outlet.fail(Fault(errors_pb2.ERROR_REASON_BACKEND_LOST, "gone"))
        assert list((await call.read()).token_ids) == [0, 1]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        fault = fault_from_rpc_error(caught.value)
        assert (fault.reason, fault.work) == (errors_pb2.ERROR_REASON_BACKEND_LOST, "output_seen")


async def test_a_whole_answer_is_added_up_from_its_chunks():
    async with scene() as s:
        call = s.stub.Generate(ask(), metadata=s.auth)
        outlet = await s.handler.next()
        for position in range(1000):
            outlet.chunk(step(position), last=False, tokens=1)
        outlet.chunk(end(1000), last=True, tokens=0)
        answer = await call
    (choice,) = answer.choices
    assert list(choice.token_ids) == list(range(1000))
    assert choice.finish_reason == pb.FINISH_REASON_STOP
    assert (answer.usage.completion_tokens, answer.receipt.backend_id) == (1000, "b")


async def test_a_whole_answer_that_cannot_be_read_stops_its_own_request_alone():
    async with scene() as s:
        call = s.stub.Generate(ask(), metadata=s.auth)
        broken = await s.handler.next()
        other = s.stub.Generate(ask(), metadata=s.auth)
        outlet = await s.handler.next()
        for _ in range(200):
            broken.chunk(b"\xff no chunk", last=False, tokens=1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert s.handler.cancelled == [broken]
        outlet.chunk(end(0), last=True, tokens=0)
        assert (await other).choices[0].finish_reason == pb.FINISH_REASON_STOP


async def test_a_caller_of_a_whole_answer_who_leaves_stops_the_work():
    async with scene() as s:
        call = s.stub.Generate(ask(), metadata=s.auth)
        outlet = await s.handler.next()
        outlet.chunk(step(0), last=False, tokens=1)
        call.cancel()

        async def stopped() -> bool:
            return s.handler.cancelled == [outlet]

        await until(stopped)
