"""What an engine refuses at the door, before it costs anything: over real sockets."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.local_engine.simulation.engine import SimEngine, SimOptions
from services.local_engine.simulation.model import SimLimits
from services.local_engine.step_model import StepModel
from tests.inprocess.test_local_engine import MODEL_NAME, Caller, engine, refusal, request
from tests.support.waiting import BOUND_S


async def refused(caller: Caller, wanted: pb.GenerateRequest):
    return await refusal(caller.stub.Generate(wanted, metadata=caller.metadata, timeout=BOUND_S))


async def test_choices_that_the_cache_cannot_hold_at_once_are_out_of_range():
    async with engine(sim_kv_tokens=1024) as caller:
        wanted = request(prompt="bako", sampling={"n": 8, "max_tokens": 200})
        fault = await refused(caller, wanted)
        assert fault.code == grpc.StatusCode.OUT_OF_RANGE
        wanted.sampling.max_tokens = 100
        answer = await caller.stub.Generate(wanted, metadata=caller.metadata, timeout=BOUND_S)
        assert len(answer.choices) == 8


async def test_a_text_that_cannot_fit_is_refused_but_can_be_counted():
    async with engine(max_model_len=1000) as caller:
        text = " bako" * 1000
        fault = await refused(caller, request(prompt=text, sampling={"max_tokens": 1}))
        assert fault.code == grpc.StatusCode.OUT_OF_RANGE
        assert "5000 bytes" in fault.message
        counted = await caller.stub.CountTokens(
            _count(request(prompt=text)), metadata=caller.metadata, timeout=BOUND_S
        )
        assert counted.prompt_tokens == 1000


def _count(wanted: pb.GenerateRequest):
    from anabranch.v1 import model_pb2

    return model_pb2.CountTokensRequest(model=MODEL_NAME, request=wanted)


@pytest.mark.parametrize("prompt", ["x" * 600, "x" * 2000])
async def test_prompts_beyond_the_tokens_that_may_wait_are_overload_with_a_time_to_retry(prompt):
    options = SimOptions(
        name=MODEL_NAME, limits=SimLimits(max_running=4), pace=StepModel(1e-3, 0, 0, 0)
    )
    simulation = SimEngine(options)
    async with engine(simulation, max_waiting_tokens=1000) as caller:
        simulation.stalled = True
        waiting = asyncio.ensure_future(
            caller.stub.Generate(
                # Whatever its own length, one that finds nobody waiting is taken.
                request(prompt="y" * 1500, sampling={"max_tokens": 1}),
                metadata=caller.metadata,
                timeout=BOUND_S,
            )
        )
        async with asyncio.timeout(BOUND_S):
            while not simulation.load().queued_prefill_tokens:
                await asyncio.sleep(0.005)
        fault = await refused(caller, request(prompt=prompt, sampling={"max_tokens": 1}))
        assert fault.reason == errors_pb2.ERROR_REASON_OVERLOADED
        assert fault.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert fault.retry_after > 0
        simulation.stalled = False
        assert (await waiting).usage.prompt_tokens == 1500
        await caller.generate(prompt=prompt, sampling={"max_tokens": 1})


async def test_a_simulation_offers_no_forms_and_says_what_does_not_go_with_one():
    form = pb.ResponseFormat(choice=pb.ResponseFormat.Choice(options=["a"]))
    async with engine() as caller:
        fault = await refused(caller, request(response_format=form))
        assert fault.code == grpc.StatusCode.UNIMPLEMENTED
        fault = await refused(
            caller, request(response_format=form, sampling={"ignore_eos": True, "min_tokens": 2})
        )
        assert [v.field for v in fault.violations] == [
            "sampling.min_tokens",
            "sampling.ignore_eos",
        ]
