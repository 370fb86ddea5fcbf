"""The local engine as its callers see it: through app.running(), real sockets, real tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from anabranch.v1 import errors_pb2, model_pb2, model_pb2_grpc, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.channels import open_channel
from services.chassis.errors import Work, fault_from_rpc_error
from services.chassis.host import Host
from services.chassis.prompt_blocks import prompt_blocks
from services.local_engine.app import EngineLost, running
from services.local_engine.engine import Job, OnDelta, OnFail, OnPlain
from services.local_engine.on_vllm.core_failures import OUT_OF_MEMORY, core_failure
from services.local_engine.settings import Settings
from services.local_engine.simulation.engine import SimEngine, SimOptions
from services.local_engine.simulation.model import answer_seed, token_at
from tests.support.engines import MODEL
from tests.support.local_keys import LocalKeys
from tests.support.waiting import BOUND_S
from tools.cluster.ports import free_port

MODEL_NAME = "river"


class Caller:
    """A stub of a running engine, with a credential."""

    def __init__(self, host: Host, channel: grpc.aio.Channel, token: str) -> None:
        self.host = host
        self.channel = channel
        self.stub: Any = model_pb2_grpc.ModelServiceStub(channel)
        self.metadata = [("authorization", f"Bearer {token}")]

    async def generate(self, **fields: Any) -> pb.GenerateResponse:
        call = self.stub.Generate(request(**fields), metadata=self.metadata, timeout=BOUND_S)
        answer: pb.GenerateResponse = await call
        return answer

    async def stream(self, **fields: Any) -> list[pb.GenerateChunk]:
        call = self.stub.StreamGenerate(request(**fields), metadata=self.metadata, timeout=BOUND_S)
        return [chunk async for chunk in call]

    async def session(self, *requests: pb.GenerateRequest) -> list[session_pb2.SessionResponse]:
        """Starts all requests in one message and returns every message until they have ended."""
        call = self.stub.Session(metadata=self.metadata, timeout=BOUND_S)
        frames = [
            session_pb2.SessionRequestFrame(stream=number, start=start)
            for number, start in enumerate(requests, 1)
        ]
        await call.write(session_pb2.SessionRequest(frames=frames))
        await call.done_writing()
        return [message async for message in call]


def request(**fields: Any) -> pb.GenerateRequest:
    text = fields.pop("text", "Tell me of the river.")
    sampling = {"temperature": 0.0, "max_tokens": 16} | fields.pop("sampling", {})
    fields.setdefault("model", MODEL_NAME)
    if "prompt" not in fields and "prompt_token_ids" not in fields:
        fields["messages"] = [pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=text)])]
    return pb.GenerateRequest(sampling=pb.Sampling(**sampling), **fields)


@asynccontextmanager
async def engine(simulation: SimEngine | None = None, **changes: Any) -> AsyncIterator[Caller]:
    keys = LocalKeys()
    fields: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "http_listen": "127.0.0.1:0",
        "engine": "sim",
        "served_model_name": MODEL_NAME,
        "model_aliases": ("stream",),
        "step_model": "1000,0,0,0",
        "drain_timeout": 5.0,
        "zone": "z1",
    }
    settings = Settings(**fields | changes)
    async with (
        running(settings, key_source=keys, engine=simulation) as host,
        open_channel(host.address) as channel,
    ):
        yield Caller(host, channel, keys.token("generate", "relay"))


def usage_of(messages: list[session_pb2.SessionResponse]) -> pb.Usage:
    """Of a session's one request."""
    (last,) = [f.chunk for message in messages for f in message.frames if f.last]
    usage: pb.Usage = last.usage
    return usage


async def refusal(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return fault_from_rpc_error(failed.value)


async def test_an_answer_has_its_text_tokens_usage_and_label():
    async with engine() as caller:
        prompt = [300, 301, 302]
        answer = await caller.generate(
            prompt_token_ids=prompt, sampling={"ignore_eos": True}, request_id="mine"
        )
    (choice,) = answer.choices
    seed = answer_seed(prompt)
    assert list(choice.token_ids) == [token_at(seed, n) for n in range(16)]
    assert choice.text.startswith("[sim] ")
    assert choice.finish_reason == pb.FINISH_REASON_LENGTH
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 16)
    assert answer.usage.source == pb.Usage.SOURCE_PROVIDER
    assert answer.request_id == "mine"


async def test_a_stream_counts_its_tokens_and_names_its_request_once():
    async with engine() as caller:
        chunks = await caller.stream(request_id="r-1")
    position = 0
    for chunk in chunks:
        assert chunk.first_token == position
        position += len(chunk.token_ids)
    assert [c.request_id for c in chunks if c.request_id] == ["r-1"]
    assert chunks[0].request_id == "r-1"
    assert [bool(c.finish_reason) for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert [c.HasField("usage") for c in chunks] == [False] * (len(chunks) - 1) + [True]


async def test_a_session_introduces_the_backend_and_reports_load():
    async with engine() as caller:
        messages = await caller.session(*(request(text=f"{n}") for n in range(4)))
        ready = messages[0].ready
        assert ready.backend_id == caller.host.instance_id
        assert (ready.tier, ready.zone) == (pb.TIER_LOCAL, "z1")
        assert [m.name for m in ready.models] == [MODEL_NAME]
    frames = [frame for message in messages for frame in message.frames]
    assert sorted(f.stream for f in frames if f.last) == [1, 2, 3, 4]
    loads = [m.load for m in messages if m.HasField("load")]
    assert loads
    assert all(load.max_running and load.kv_total_tokens for load in loads)
    # One message per step with a frame for each request, not one per token.
    assert len(messages) < len(frames)


async def test_every_report_says_what_steps_should_cost():
    async with engine(step_model="1000,2,3,0.5", sim_speed=2.0) as caller:
        messages = await caller.session(request())
    models = [m.load.step_model for m in messages if m.HasField("load")]
    assert {(m.base, m.prefill, m.decode, m.context) for m in models} == {(500, 1, 1.5, 0.25)}


async def test_every_session_is_told_which_prompts_the_cache_holds():
    long = request(text="The river runs to the sea. " * 60)
    names = set(prompt_blocks(long))
    async with engine() as caller:
        first = await caller.session(long)
        second = await caller.session(request(text="Something else."))
        third = await caller.session(long)
    for messages in (first, second, third):
        assert messages[0].ready.prefix_cache_events
        told = [m.prefix_cache for m in messages if m.HasField("prefix_cache")]
        assert told[0].cleared
        held = {name for events in told for name in events.stored}
        # The text's end may fill no block of the engine's own.
        assert names - held <= {prompt_blocks(long)[-1]}
    assert usage_of(first).cached_prompt_tokens == 0
    assert usage_of(third).cached_prompt_tokens > 1000


async def test_an_engine_that_is_told_not_to_tells_nothing_of_its_cache():
    async with engine(prefix_events=False) as caller:
        messages = await caller.session(request(text="The river runs to the sea. " * 60))
    assert not messages[0].ready.prefix_cache_events
    assert not any(m.HasField("prefix_cache") for m in messages)


async def test_two_choices_end_apart_and_the_stream_ends_with_the_last():
    async with engine() as caller:
        chunks = await caller.stream(sampling={"n": 2, "max_tokens": 5, "ignore_eos": True})
    ends = [c.index for c in chunks if c.finish_reason]
    assert sorted(ends) == [0, 1]
    assert chunks[-1].usage.completion_tokens == 10
    assert len([c for c in chunks if c.HasField("usage")]) == 1


async def test_a_resumed_stream_goes_on_where_it_was():
    async with engine() as caller:
        whole = await caller.generate(sampling={"ignore_eos": True})
        tokens = list(whole.choices[0].token_ids)
        chunks = await caller.stream(
            sampling={"ignore_eos": True, "max_tokens": 6},
            continuation=pb.Continuation(token_ids=tokens[:10], text="[sim]"),
        )
        # A caller that kept only the text: the label and the first word, two tokens.
        by_text = await caller.stream(
            sampling={"ignore_eos": True, "max_tokens": 6},
            continuation=pb.Continuation(text=whole.choices[0].text[: len("[sim] word")]),
        )
    assert [t for c in chunks for t in c.token_ids] == tokens[10:]
    assert "[sim]" + "".join(c.text for c in chunks) == whole.choices[0].text
    assert chunks[0].first_token == 10
    assert chunks[-1].usage.completion_tokens == 16
    assert [t for c in by_text for t in c.token_ids] == tokens[2:8]


async def test_a_prompt_beyond_the_context_is_out_of_range():
    async with engine(max_model_len=100) as caller:
        fault = await refusal(
            caller.generate(prompt_token_ids=[5] * 90, sampling={"max_tokens": 20})
        )
        assert fault.code == grpc.StatusCode.OUT_OF_RANGE
        assert fault.reason == errors_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED
        assert (fault.metadata["prompt_tokens"], fault.metadata["context_length"]) == ("90", "100")
        whole = await caller.generate(
            prompt_token_ids=[5] * 90, sampling={"max_tokens": 10, "ignore_eos": True}
        )
        assert whole.usage.completion_tokens == 10


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model": "unknown"}, errors_pb2.ERROR_REASON_MODEL_NOT_FOUND),
        ({"tools": [pb.Tool(name="f")]}, errors_pb2.ERROR_REASON_UNSUPPORTED),
        (
            {"response_format": pb.ResponseFormat(regex="a+")},
            errors_pb2.ERROR_REASON_UNSUPPORTED,
        ),
        (
            {"sampling": {"n": 2}, "continuation": pb.Continuation(text="x")},
            errors_pb2.ERROR_REASON_UNSUPPORTED,
        ),
        ({"prompt_token_ids": [9_999_999]}, errors_pb2.ERROR_REASON_INVALID_REQUEST),
        (
            {"continuation": pb.Continuation(token_ids=[1], text="zzz")},
            errors_pb2.ERROR_REASON_INVALID_REQUEST,
        ),
    ],
)
async def test_what_cannot_be_served_is_refused_with_its_reason(fields, reason):
    async with engine() as caller:
        fault = await refusal(caller.generate(**fields))
        assert fault.reason == reason
        assert (await caller.generate()).choices[0].text


async def test_a_caller_that_leaves_frees_the_slot():
    simulation = SimEngine(SimOptions(name=MODEL_NAME))
    async with engine(simulation) as caller:
        call = caller.stub.StreamGenerate(
            request(sampling={"max_tokens": 20_000, "ignore_eos": True}), metadata=caller.metadata
        )
        await call.read()
        assert simulation.load().running == 1
        call.cancel()
        async with asyncio.timeout(BOUND_S):
            while simulation.load().running:
                await asyncio.sleep(0.005)


async def test_a_cancel_in_a_session_ends_that_stream_with_a_partial_usage():
    async with engine() as caller:
        call = caller.stub.Session(metadata=caller.metadata, timeout=BOUND_S)
        start = request(sampling={"max_tokens": 20_000, "ignore_eos": True})
        frame = session_pb2.SessionRequestFrame
        await call.write(session_pb2.SessionRequest(frames=[frame(stream=1, start=start)]))
        last: pb.GenerateChunk | None = None
        async for message in call:
            for news in message.frames:
                if news.last:
                    last = news.chunk
                elif news.chunk.first_token == 3:
                    cancel = frame(stream=1, cancel=session_pb2.SessionCancel())
                    await call.write(session_pb2.SessionRequest(frames=[cancel]))
            if last is not None:
                break
        assert last is not None
        assert last.finish_reason == pb.FINISH_REASON_CANCELLED
        assert last.usage.source == pb.Usage.SOURCE_PARTIAL
        await call.done_writing()


async def test_too_many_waiting_requests_are_refused_as_overload():
    simulation = SimEngine(SimOptions(name=MODEL_NAME))
    async with engine(simulation, max_waiting=4) as caller:
        simulation.stalled = True
        calls = [asyncio.ensure_future(caller.stream(text=f"{n}")) for n in range(12)]
        done, _ = await asyncio.wait(calls, timeout=BOUND_S, return_when=asyncio.FIRST_COMPLETED)
        fault = await refusal(next(iter(done)))
        assert fault.reason == errors_pb2.ERROR_REASON_OVERLOADED
        assert fault.retry_after
        simulation.stalled = False
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert any(isinstance(result, list) for result in results)


async def test_tokens_are_counted_and_models_listed_with_their_aliases():
    async with engine() as caller:
        counted = await caller.stub.CountTokens(
            model_pb2.CountTokensRequest(model="stream", request=request(model="stream")),
            metadata=caller.metadata,
        )
        answer = await caller.generate(model="stream")
        listed = await caller.stub.ListModels(
            model_pb2.ListModelsRequest(), metadata=caller.metadata
        )
        fault = await refusal(
            caller.stub.Embed(
                model_pb2.EmbedRequest(model=MODEL_NAME, inputs=["x"]), metadata=caller.metadata
            )
        )
    assert counted.prompt_tokens == answer.usage.prompt_tokens
    assert counted.source == pb.Usage.SOURCE_PROVIDER
    (model,) = listed.models
    assert (model.name, list(model.aliases)) == (MODEL_NAME, ["stream"])
    assert pb.CAPABILITY_RESUME_TOKENS in model.capabilities
    assert fault.reason == errors_pb2.ERROR_REASON_UNSUPPORTED
    assert fault.metadata["feature"] == "embed"


async def test_health_says_not_serving_until_the_model_is_loaded():
    loading = asyncio.Event()
    loaded = asyncio.Event()

    async def load(_: float) -> None:
        if not loaded.is_set():
            loading.set()
            await loaded.wait()
        else:
            await asyncio.sleep(0)

    simulation = SimEngine(SimOptions(name=MODEL_NAME, load_seconds=1), sleep=load)
    port = free_port()
    async with asyncio.TaskGroup() as tasks:
        finish = asyncio.Event()

        async def serve() -> None:
            async with engine(simulation, listen=f"127.0.0.1:{port}"):
                await finish.wait()

        tasks.create_task(serve())
        await loading.wait()
        async with open_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            early = await stub.Check(health_pb2.HealthCheckRequest())
            loaded.set()
            async with asyncio.timeout(BOUND_S):
                while (await stub.Check(health_pb2.HealthCheckRequest())).status != 1:
                    await asyncio.sleep(0.01)
        finish.set()
    assert early.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_dead_engine_ends_the_process():
    class Mortal(SimEngine):
        async def lost(self) -> str:
            return "killed"

    with pytest.RaisesGroup(EngineLost):
        async with engine(Mortal(SimOptions(name=MODEL_NAME))):
            await asyncio.sleep(BOUND_S)


async def test_a_request_that_a_dead_engine_never_got_fails_and_nothing_drains_for_it():
    encoding, dies = asyncio.Event(), asyncio.Event()

    class Mortal(SimEngine):
        async def encode(self, request: pb.GenerateRequest) -> list[int]:
            encoding.set()
            await asyncio.sleep(BOUND_S)
            return await super().encode(request)

        async def lost(self) -> str:
            await dies.wait()
            return "killed"

    with pytest.RaisesGroup(EngineLost):
        # A drain that waited for them would outlast the test.
        async with engine(Mortal(SimOptions(name=MODEL_NAME)), drain_timeout=600.0) as caller:
            calls = [asyncio.ensure_future(refusal(caller.generate())) for _ in range(3)]
            await encoding.wait()
            dies.set()
            try:
                await asyncio.sleep(BOUND_S)
            finally:
                faults = await asyncio.gather(*calls)
    assert {fault.reason for fault in faults} == {errors_pb2.ERROR_REASON_BACKEND_LOST}
    assert {fault.work for fault in faults} == {Work.NOT_DISPATCHED}


async def test_a_request_that_runs_the_engine_out_of_memory_is_counted():
    class Short(SimEngine):
        def submit(
            self, job: Job, on_delta: OnDelta, on_fail: OnFail, on_plain: OnPlain | None = None
        ) -> None:
            fault = core_failure("error", f"{OUT_OF_MEMORY}9 tokens of the step's 9: no memory")
            assert fault is not None
            on_fail(fault)

    async with engine(Short(SimOptions(name=MODEL_NAME))) as caller:
        fault = await refusal(caller.generate())
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://{caller.host.http_address}/metrics") as response,
        ):
            text = await response.text()
    assert fault.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert fault.work is Work.MAYBE_BILLED
    assert fault.metadata["cause"] == "out_of_memory"
    assert "no memory" not in fault.message
    assert "anabranch_engine_out_of_memory_total 1.0" in text


async def test_metrics_tell_the_times_of_requests():
    async with engine() as caller:
        await caller.generate()
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://{caller.host.http_address}/metrics") as response,
        ):
            text = await response.text()
    assert "gen_ai_server_time_to_first_token" in text
    assert 'gen_ai_request_model="river"' in text


@pytest.mark.vllm
@pytest.mark.timeout(900)
async def test_vllm_answers_the_same_through_every_rpc():
    if not MODEL.is_dir():
        pytest.skip("no model: run tools/fetch_model.py")
    fields: dict[str, Any] = {
        "text": "What is the capital of France?",
        "sampling": {"max_tokens": 32},
    }
    async with engine(
        None,
        engine="vllm",
        model=str(MODEL),
        step_model="",
        max_num_seqs=16,
        max_model_len=1024,
        cpu_kv_cache_gib=1,
    ) as caller:
        whole = await caller.generate(**fields)
        chunks = await caller.stream(**fields)
        messages = await caller.session(request(**fields))
        long = request(text="The river runs to the sea. " * 90)
        before = await caller.session(long)
        after = await caller.session(long)
        choice = pb.GenerateRequest(
            model=MODEL_NAME,
            prompt="Is water wet? Answer:",
            sampling=pb.Sampling(temperature=0.0, max_tokens=8),
            response_format=pb.ResponseFormat(
                choice=pb.ResponseFormat.Choice(options=["no", "yes"])
            ),
        )
        constrained = await caller.stub.Generate(choice, metadata=caller.metadata, timeout=60)
        choice.response_format.regex = "(never closed"
        refused = await refusal(caller.stub.Generate(choice, metadata=caller.metadata, timeout=60))
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"http://{caller.host.http_address}/metrics") as response,
        ):
            metrics = await response.text()
    framed = [frame.chunk for message in messages for frame in message.frames]
    tokens = list(whole.choices[0].token_ids)
    told = [m.prefix_cache for m in after if m.HasField("prefix_cache")]
    held = {name for events in told for name in events.stored}
    usage = [usage_of(messages) for messages in (before, after)]
    assert usage[0].cached_prompt_tokens == 0
    assert usage[1].cached_prompt_tokens > usage[1].prompt_tokens / 2
    assert len(held & set(prompt_blocks(long))) > len(prompt_blocks(long)) / 2
    assert any(m.load.step_model.base > 0 for m in after)
    assert "Paris" in whole.choices[0].text
    assert whole.choices[0].finish_reason == pb.FINISH_REASON_STOP
    assert [t for c in chunks for t in c.token_ids] == tokens
    assert [t for c in framed for t in c.token_ids] == tokens
    assert "".join(c.text for c in framed) == whole.choices[0].text
    assert constrained.choices[0].text in ("no", "yes")
    assert refused.violations[0].field == "response_format.regex"
    assert "vllm:time_to_first_token_seconds" in metrics
