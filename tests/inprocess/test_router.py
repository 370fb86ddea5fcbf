"""The router in front of sim engines, all real services in one process: what callers see."""

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from anabranch.v1 import admin_pb2, admin_pb2_grpc, errors_pb2, model_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import fault_from_rpc_error
from tests.support.auth import bearer, until
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub


def ask(text: str = "hello", **fields) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        **{
            "model": MODEL,
            "messages": [pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=text)])],
            "sampling": pb.Sampling(max_tokens=20, ignore_eos=True),
            **fields,
        }
    )


@asynccontextmanager
async def caller(running: Cluster, *scopes: str):
    secret = await running.new_client("shop", *(scopes or ("generate", "admin")))
    token = await running.token("shop", secret)
    async with running.channel(running.router) as channel:
        yield channel, bearer(token)


@pytest.fixture
async def two_engines(tmp_path: Path):
    async with cluster(tmp_path, engines=({"sim_speed": 3.0}, {"sim_speed": 3.0})) as running:
        yield running


async def test_an_answer_streams_through_the_router_with_its_receipt(two_engines):
    async with caller(two_engines) as (channel, auth):
        chunks = [c async for c in model_stub(channel).StreamGenerate(ask(), metadata=auth)]
    assert sum(len(c.token_ids) for c in chunks) == 20
    last = chunks[-1]
    assert last.finish_reason == pb.FINISH_REASON_LENGTH
    assert last.usage.completion_tokens == 20
    assert last.receipt.tier == pb.TIER_LOCAL
    assert last.receipt.backend_id.startswith("engine-")
    assert last.receipt.ttft.ToNanoseconds() > 0
    assert [a.error_reason for a in last.receipt.attempts] == [""]


async def test_the_three_forms_give_the_same_tokens(two_engines):
    from anabranch.v1 import session_pb2

    async with caller(two_engines) as (channel, auth):
        stub = model_stub(channel)
        whole = await stub.Generate(ask(), metadata=auth)
        streamed = [t async for c in stub.StreamGenerate(ask(), metadata=auth) for t in c.token_ids]
        session = stub.Session(metadata=auth)
        assert (await session.read()).HasField("ready")
        await session.write(
            session_pb2.SessionRequest(
                frames=[session_pb2.SessionRequestFrame(stream=1, start=ask())]
            )
        )
        multiplexed: list[int] = []
        last = False
        while not last:
            message = await session.read()
            for frame in message.frames:
                multiplexed += frame.chunk.token_ids
                last = last or frame.last
        await session.done_writing()
        assert await session.read() is grpc.aio.EOF
        assert await session.code() is grpc.StatusCode.OK
    assert list(whole.choices[0].token_ids) == streamed == multiplexed
    assert len(streamed) == 20


async def test_an_engine_lost_mid_stream_loses_no_token(two_engines):
    request = ask("a long story", sampling=pb.Sampling(max_tokens=300, ignore_eos=True))
    async with caller(two_engines) as (channel, auth):
        stub = model_stub(channel)
        undisturbed = (await stub.Generate(request, metadata=auth)).choices[0]
        call = stub.StreamGenerate(request, metadata=auth)
        chunks = []
        async for chunk in call:
            chunks.append(chunk)
            if len(chunks) == 5:
                for engine in two_engines.engines:
                    engine.simulation.slowdown = 100.0
                busy = next(b for b in await two_engines.backends() if b.in_flight)
                engine = next(
                    e for e in two_engines.engines if e.host.instance_id == busy.backend_id
                )
                # As a crash: the listening server stops at once, without a farewell.
                await engine.host._server.stop(0)
                for engine in two_engines.engines:
                    engine.simulation.slowdown = 1.0
    tokens = [t for c in chunks for t in c.token_ids]
    assert tokens == list(undisturbed.token_ids)
    assert "".join(c.text for c in chunks) == undisturbed.text
    receipt = chunks[-1].receipt
    assert len(receipt.attempts) == 2
    assert receipt.attempts[0].error_reason == "BACKEND_LOST"
    assert len(receipt.resumed_at_tokens) == 1
    assert 0 < receipt.resumed_at_tokens[0] < 300
    assert chunks[-1].usage.completion_tokens == 300


async def test_an_engine_that_leaves_finishes_its_streams_first(two_engines):
    request = ask(sampling=pb.Sampling(max_tokens=200, ignore_eos=True))
    for engine in two_engines.engines:
        engine.simulation.slowdown = 20.0
    async with caller(two_engines) as (channel, auth):
        stub = model_stub(channel)
        calls = [stub.Generate(request, metadata=auth) for _ in range(20)]
        tasks = [asyncio.ensure_future(call) for call in calls]

        async def both_busy() -> bool:
            return all(b.in_flight for b in await two_engines.backends())

        await until(both_busy)
        for engine in two_engines.engines:
            engine.simulation.slowdown = 1.0
        await two_engines.engines[0].stop()
        answers = await asyncio.gather(*tasks)
    for answer in answers:
        assert len(answer.choices[0].token_ids) == 200
        assert not answer.receipt.resumed_at_tokens


async def test_local_only_waits_for_a_slot_and_is_then_served(tmp_path):
    async with (
        cluster(tmp_path, engines=({"max_num_seqs": 1},)) as running,
        caller(running) as (channel, auth),
    ):
        stub = model_stub(channel)
        first = stub.StreamGenerate(
            ask(sampling=pb.Sampling(max_tokens=100, ignore_eos=True)), metadata=auth
        )
        await first.read()
        request = ask(routing=pb.Routing(residency=pb.RESIDENCY_LOCAL_ONLY))
        second = await stub.Generate(request, metadata=auth)
        assert second.choices[0].finish_reason == pb.FINISH_REASON_LENGTH
        assert second.receipt.queue_time.ToNanoseconds() > 0
        while await first.read() is not grpc.aio.EOF:
            pass


async def test_a_request_that_waits_beyond_its_limit_is_refused_with_retry_info(tmp_path):
    async with (
        cluster(tmp_path, engines=({"max_num_seqs": 1, "sim_slowdown": 10.0},)) as running,
        caller(running) as (channel, auth),
    ):
        stub = model_stub(channel)
        first = stub.StreamGenerate(
            ask(sampling=pb.Sampling(max_tokens=500, ignore_eos=True)), metadata=auth
        )
        await first.read()
        request = ask(routing=pb.Routing(residency=pb.RESIDENCY_LOCAL_ONLY))
        request.routing.ttft_slo.FromMilliseconds(300)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(request, metadata=auth)
        fault = fault_from_rpc_error(caught.value)
        assert fault.reason == errors_pb2.ERROR_REASON_OVERLOADED
        assert fault.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert fault.retry_after
        assert fault.work == "not_dispatched"
        first.cancel()


async def test_a_caller_that_disconnects_frees_the_slot(tmp_path):
    async with (
        cluster(tmp_path, engines=({"max_num_seqs": 1},)) as running,
        caller(running) as (channel, auth),
    ):
        stub = model_stub(channel)
        call = stub.StreamGenerate(
            ask(sampling=pb.Sampling(max_tokens=30_000, ignore_eos=True)), metadata=auth
        )
        await call.read()
        call.cancel()

        async def free() -> bool:
            (backend,) = await running.backends()
            return backend.in_flight == 0 and backend.load.running == 0

        await until(free)
        assert (await stub.Generate(ask(), metadata=auth)).choices


async def test_drained_backends_get_nothing_and_undrained_ones_do(two_engines):
    async with caller(two_engines) as (channel, auth):
        admin = admin_pb2_grpc.RouterAdminServiceStub(channel)
        first, second = two_engines.engines
        drained = first.host.instance_id
        await admin.DrainBackend(admin_pb2.DrainBackendRequest(backend_id=drained), metadata=auth)
        stub = model_stub(channel)
        for _ in range(10):
            answer = await stub.Generate(ask(), metadata=auth)
            assert answer.receipt.backend_id == second.host.instance_id
        explained = await admin.ExplainRoute(
            admin_pb2.ExplainRouteRequest(request=ask()), metadata=auth
        )
        objections = {c.backend_id: c.objection for c in explained.candidates}
        assert "operator" in objections[drained]
        await admin.UndrainBackend(
            admin_pb2.UndrainBackendRequest(backend_id=drained), metadata=auth
        )
        answers = await asyncio.gather(*[stub.Generate(ask(), metadata=auth) for _ in range(30)])
        served = {answer.receipt.backend_id for answer in answers}
        assert drained in served


async def test_a_new_engine_is_found_and_used(two_engines):
    engine = await two_engines.add_engine(model="other-model")
    await two_engines.backends_ready(3)
    async with caller(two_engines) as (channel, auth):
        stub = model_stub(channel)
        answer = await stub.Generate(ask(model="other-model"), metadata=auth)
        assert answer.receipt.backend_id == engine.host.instance_id
        listed = await stub.ListModels(model_pb2.ListModelsRequest(), metadata=auth)
    assert [(m.name, m.backends) for m in listed.models] == [("other-model", 1), (MODEL, 2)]


async def test_models_are_listed_page_by_page(two_engines):
    await two_engines.add_engine(model="a-model")
    await two_engines.backends_ready(3)
    async with caller(two_engines) as (channel, auth):
        stub = model_stub(channel)
        first = await stub.ListModels(model_pb2.ListModelsRequest(page_size=1), metadata=auth)
        assert [m.name for m in first.models] == ["a-model"]
        rest = await stub.ListModels(
            model_pb2.ListModelsRequest(page_token=first.next_page_token), metadata=auth
        )
        assert [m.name for m in rest.models] == [MODEL]
        assert not rest.next_page_token


async def test_tokens_are_counted_by_the_engine(two_engines):
    async with caller(two_engines) as (channel, auth):
        counted = await model_stub(channel).CountTokens(
            model_pb2.CountTokensRequest(model=MODEL, request=ask("hello there")), metadata=auth
        )
    assert counted.prompt_tokens > 0
    assert counted.context_length > 0
    assert counted.source == pb.Usage.SOURCE_PROVIDER


async def test_an_operator_can_cancel_a_request(two_engines):
    async with caller(two_engines) as (channel, auth):
        request = ask(request_id="job-7", sampling=pb.Sampling(max_tokens=5000, ignore_eos=True))
        call = model_stub(channel).StreamGenerate(request, metadata=auth)
        await call.read()
        admin = admin_pb2_grpc.RouterAdminServiceStub(channel)
        await admin.CancelRequest(admin_pb2.CancelRequestRequest(request_id="job-7"), metadata=auth)
        last = None
        while (chunk := await call.read()) is not grpc.aio.EOF:
            last = chunk
        assert last.finish_reason == pb.FINISH_REASON_CANCELLED
        assert last.usage.source == pb.Usage.SOURCE_PARTIAL


async def test_a_request_ends_at_its_own_time_limit(two_engines):
    request = ask(sampling=pb.Sampling(max_tokens=100_000, ignore_eos=True))
    request.sampling.max_tokens = 4000
    request.timeout.FromMilliseconds(300)
    async with caller(two_engines) as (channel, auth):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await model_stub(channel).Generate(request, metadata=auth)
    fault = fault_from_rpc_error(caught.value)
    assert fault.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert fault.reason == errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED


async def test_a_deadline_that_ends_in_the_line_says_that_nothing_ran(tmp_path):
    async with (
        cluster(tmp_path, engines=({"max_num_seqs": 1},)) as running,
        caller(running) as (channel, auth),
    ):
        stub = model_stub(channel)
        first = stub.StreamGenerate(
            ask(sampling=pb.Sampling(max_tokens=5000, ignore_eos=True)), metadata=auth
        )
        await first.read()
        request = ask(routing=pb.Routing(residency=pb.RESIDENCY_LOCAL_ONLY))
        request.timeout.FromMilliseconds(400)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(request, metadata=auth)
        fault = fault_from_rpc_error(caught.value)
        assert fault.reason == errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED
        assert fault.work == "not_dispatched"
        first.cancel()


async def test_a_full_line_is_served_to_its_end(tmp_path):
    async with (
        cluster(tmp_path, engines=({"max_num_seqs": 2, "sim_speed": 3.0},)) as running,
        caller(running) as (channel, auth),
    ):
        stub = model_stub(channel)
        waiting = []
        for _ in range(20):
            request = ask(routing=pb.Routing(residency=pb.RESIDENCY_LOCAL_ONLY))
            waiting.append(asyncio.ensure_future(stub.Generate(request, metadata=auth)))
        answers = await asyncio.gather(*waiting)
    assert all(len(answer.choices[0].token_ids) == 20 for answer in answers)
    assert any(answer.receipt.queue_time.ToNanoseconds() > 10**7 for answer in answers)
