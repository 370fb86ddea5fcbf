"""Overflow to the cloud through the real router, proxy and provider simulator, in one process."""

from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import fault_from_rpc_error
from services.chassis.settings import Secret
from tests.support.auth import bearer
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub
from tests.support.provider import KEY, Provider, routes_file, simulator
from tests.support.waiting import BOUND_S


def ask(residency: int = pb.RESIDENCY_UNSPECIFIED, **fields) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        **{
            "model": MODEL,
            "messages": [pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="hi")])],
            "sampling": pb.Sampling(max_tokens=5),
            "routing": pb.Routing(residency=residency),
            **fields,
        }
    )


class Scene:
    """A cluster with one slot, a cloud behind it, and a caller."""

    def __init__(self, running: Cluster, provider: Provider, stub, auth) -> None:
        self.running = running
        self.provider = provider
        self.stub = stub
        self.auth = auth

    async def answer(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        return await self.stub.Generate(request, metadata=self.auth, timeout=BOUND_S)

    @asynccontextmanager
    async def local_is_full(self):
        call = self.stub.StreamGenerate(
            ask(sampling=pb.Sampling(max_tokens=5000, ignore_eos=True)), metadata=self.auth
        )
        await call.read()
        try:
            yield call
        finally:
            call.cancel()


@asynccontextmanager
async def scene(directory: Path, engines=({"max_num_seqs": 1},), **cloud):
    # An engine whose only slot is taken for long cannot meet this, one that is free can.
    router = {"ttft_slo": 1.0}
    async with (
        simulator(KEY) as provider,
        cluster(directory, engines=engines, router=router) as running,
    ):
        models = routes_file(
            directory, provider.url, **{MODEL: {"provider": "simulator", "model": "sim-chat"}}
        )
        await running.add_cloud(models, api_keys=Secret(f"simulator={KEY}"), **cloud)
        await running.backends_ready(len(engines) + 1)
        secret = await running.new_client("shop", "generate")
        token = await running.token("shop", secret)
        async with running.channel(running.router) as channel:
            yield Scene(running, provider, model_stub(channel), bearer(token))


async def test_local_first_stays_local_while_it_can(tmp_path):
    async with scene(tmp_path) as s:
        receipt = (await s.answer(ask())).receipt
        assert receipt.tier == pb.TIER_LOCAL
        assert not receipt.overflow_reason


async def test_the_excess_goes_to_the_cloud_and_says_why(tmp_path):
    async with scene(tmp_path) as s, s.local_is_full():
        answer = await s.answer(ask())
        assert answer.receipt.tier == pb.TIER_CLOUD
        assert answer.receipt.overflow_reason == pb.OVERFLOW_REASON_SATURATED
        assert answer.receipt.served_model
        assert answer.usage.source == pb.Usage.SOURCE_PROVIDER
        assert "simulator" in answer.choices[0].text.lower()


async def test_local_only_never_leaves(tmp_path):
    async with scene(tmp_path) as s:
        async with s.local_is_full() as filler:
            waiting = s.stub.Generate(ask(pb.RESIDENCY_LOCAL_ONLY), metadata=s.auth)
            other = await s.answer(ask())
            assert other.receipt.tier == pb.TIER_CLOUD
            assert not waiting.done()
            filler.cancel()
            answer = await waiting
        assert answer.receipt.tier == pb.TIER_LOCAL
        assert answer.receipt.queue_time.ToNanoseconds() > 0
        assert len((await s.provider.state())["requests"]) == 1


async def test_cloud_only_and_cloud_first_go_to_the_cloud(tmp_path):
    async with scene(tmp_path) as s:
        for residency in (pb.RESIDENCY_CLOUD_ONLY, pb.RESIDENCY_CLOUD_FIRST):
            receipt = (await s.answer(ask(residency))).receipt
            assert receipt.tier == pb.TIER_CLOUD
            assert not receipt.overflow_reason


async def test_what_the_cloud_cannot_do_waits_for_the_local_engine(tmp_path):
    async with scene(tmp_path) as s, s.local_is_full() as filler:
        raw = ask()
        del raw.messages[:]
        raw.prompt = "a raw prompt, which this provider cannot take"
        waiting = s.stub.Generate(raw, metadata=s.auth)
        await s.answer(ask())
        filler.cancel()
        answer = await waiting
        assert answer.receipt.tier == pb.TIER_LOCAL
        assert [a.error_reason for a in answer.receipt.attempts] == ["UNSUPPORTED", ""]


async def test_a_provider_that_fails_before_output_leaves_the_request_to_local(tmp_path):
    async with scene(tmp_path, attempts=1) as s:
        await s.provider.fault("5xx")
        answer = await s.answer(ask(pb.RESIDENCY_CLOUD_FIRST))
        assert answer.receipt.tier == pb.TIER_LOCAL
        assert answer.receipt.overflow_reason == pb.OVERFLOW_REASON_FAILED
        assert [a.error_reason for a in answer.receipt.attempts] == ["PROVIDER_ERROR", ""]


async def test_a_failing_provider_is_told_of_when_nobody_else_may_answer(tmp_path):
    async with scene(tmp_path, attempts=1) as s:
        await s.provider.fault("5xx")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await s.answer(ask(pb.RESIDENCY_CLOUD_ONLY))
        fault = fault_from_rpc_error(caught.value)
        assert fault.code is grpc.StatusCode.UNAVAILABLE
        assert fault.metadata["provider"] == "simulator"


async def test_a_local_answer_is_never_gone_on_with_by_a_cloud_that_cannot(tmp_path):
    async with scene(tmp_path) as s:
        call = s.stub.StreamGenerate(
            ask(sampling=pb.Sampling(max_tokens=2000, ignore_eos=True)), metadata=s.auth
        )
        seen = len((await call.read()).token_ids)
        await s.running.engines[0].host._server.stop(0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while (chunk := await call.read()) is not grpc.aio.EOF:
                seen += len(chunk.token_ids)
        fault = fault_from_rpc_error(caught.value)
        assert fault.code is grpc.StatusCode.UNAVAILABLE
        assert fault.work == "output_seen"
        assert int(fault.metadata["tokens_delivered"]) == seen
        # The next request finds no local engine at all, and overflows for that.
        answer = await s.answer(ask())
        assert answer.receipt.overflow_reason == pb.OVERFLOW_REASON_UNHEALTHY
