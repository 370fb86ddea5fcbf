"""ModelAdminService through app.running(): loads, swaps, adapters and sleep beside running streams.

With simulated engines: what real weights do is test_real_models_at_run_time.py's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from anabranch.v1 import errors_pb2, model_admin_pb2, model_admin_pb2_grpc, model_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.channels import open_channel
from services.chassis.errors import fault_from_rpc_error
from services.local_engine.app import make_engine, running
from services.local_engine.engine import EngineStartError
from services.local_engine.settings import Settings
from services.local_engine.simulation.engine import SimEngine
from tests.inprocess.test_local_engine import MODEL_NAME, Caller, request
from tests.support.local_keys import LocalKeys
from tests.support.waiting import BOUND_S, until
from tests.support.weights import write_adapter

DONE = model_admin_pb2.LoadModelResponse.PHASE_DONE
Phase = model_admin_pb2.LoadModelResponse.Phase


class Operator:
    """An operator's stub of a running engine."""

    def __init__(self, caller: Caller, keys: LocalKeys) -> None:
        self.caller = caller
        self._keys = keys
        self.stub: Any = model_admin_pb2_grpc.ModelAdminServiceStub(caller.channel)
        self.patience = BOUND_S
        self.root = Path()

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """With a token of now: some tests outlive one."""
        return [("authorization", f"Bearer {self._keys.token('admin', 'generate')}")]

    def begin_load(self, name: str, source: str, **fields: Any) -> Any:
        asked = model_admin_pb2.LoadModelRequest(name=name, source=source, **fields)
        return self.stub.LoadModel(asked, metadata=self.metadata, timeout=self.patience)

    async def load(self, name: str, source: str, **fields: Any) -> list[Any]:
        return [step async for step in self.begin_load(name, source, **fields)]

    async def ask(self, rpc: str, **fields: Any) -> Any:
        message = getattr(model_admin_pb2, f"{rpc}Request")(**fields)
        method = getattr(self.stub, rpc)
        return await method(message, metadata=self.metadata, timeout=self.patience)

    async def refused(self, rpc: str, **fields: Any) -> Any:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            if rpc == "LoadModel":
                await self.load(**fields)
            else:
                await self.ask(rpc, **fields)
        return fault_from_rpc_error(failed.value)

    async def served(self) -> dict[str, Any]:
        answer = await self.ask("ListServedModels")
        return {one.model.name: one for one in answer.models}

    async def count(self, model: str) -> Any:
        asked = model_pb2.CountTokensRequest(model=model, request=request(model=model))
        return await self.caller.stub.CountTokens(asked, metadata=self.metadata, timeout=BOUND_S)

    async def listed(self) -> list[str]:
        answer = await self.caller.stub.ListModels(
            model_pb2.ListModelsRequest(), metadata=self.metadata, timeout=BOUND_S
        )
        return [model.name for model in answer.models]


@asynccontextmanager
async def operated(
    tmp_path: Path, *, keys: LocalKeys | None = None, **changes: Any
) -> AsyncIterator[Operator]:
    (tmp_path / "allowed" / "lake").mkdir(parents=True)
    write_adapter(tmp_path / "allowed" / "dialect", {"layers.0.q_proj": (8, 8)}, rank=4)
    fields: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "http_listen": "127.0.0.1:0",
        "engine": "sim",
        "served_model_name": MODEL_NAME,
        "drain_timeout": 5.0,
        "model_sources": (str(tmp_path / "allowed"),),
        "max_adapters": 2,
        "sleep_mode": True,
        # Slow steps: what runs is still running when something else has happened.
        "step_model": "5000,0,0,0",
        "sim_output_tokens": 4000,
    }
    keys = keys or LocalKeys()
    async with (
        running(Settings(**fields | changes), key_source=keys) as host,
        open_channel(host.address) as channel,
    ):
        caller = Caller(host, channel, keys.token("generate", "relay"))
        yield Operator(caller, keys)


class Stream:
    """A long answer that runs while something else happens."""

    def __init__(self, operator: Operator, *, tokens: int = 100_000, **fields: Any) -> None:
        sampling = {"ignore_eos": True, "max_tokens": min(tokens, 20_000)}
        self._call = operator.caller.stub.StreamGenerate(
            request(sampling=sampling, **fields),
            metadata=operator.metadata,
            timeout=operator.patience,
        )
        self._patience = operator.patience
        self.chunks: list[pb.GenerateChunk] = []
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for chunk in self._call:
            self.chunks.append(chunk)

    @property
    def tokens(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]

    async def begun(self) -> Stream:
        before = len(self.chunks)
        await soon(lambda: len(self.chunks) > before or self._task.done(), self._patience)
        assert len(self.chunks) > before
        return self

    async def whole(self) -> pb.GenerateChunk:
        await self._task
        return self.chunks[-1]

    async def cancel(self) -> None:
        self._call.cancel()
        await asyncio.wait({self._task})


async def test_a_model_is_loaded_beside_another_whose_stream_goes_on(tmp_path):
    async with operated(tmp_path) as operator:
        stream = await Stream(operator).begun()
        steps = await operator.load("lake", "lake", aliases=["pond"])
        assert [step.phase for step in steps][-2:] == [Phase.Value("PHASE_SERVING"), DONE]
        assert steps[-1].model.model.name == "lake"
        assert await operator.listed() == ["lake", MODEL_NAME]
        for name in ("lake", "pond"):
            answer = await operator.caller.generate(model=name, prompt_token_ids=[300])
            assert answer.usage.completion_tokens == 16
        await stream.begun()
        await stream.cancel()


async def test_a_swap_loses_no_stream_and_the_new_model_answers_from_then_on(tmp_path):
    async with operated(tmp_path) as operator:
        streams = [Stream(operator, tokens=200, prompt_token_ids=[300 + n]) for n in range(8)]
        for stream in streams:
            await stream.begun()
        steps = await operator.load(MODEL_NAME, "lake", options={"max_model_len": 2048})
        phases = [Phase.Name(step.phase) for step in steps]
        assert "PHASE_DRAINING" in phases
        assert phases[-1] == "PHASE_DONE"
        assert steps[-1].cut_off == 0
        for stream in streams:
            last = await stream.whole()
            assert last.finish_reason == pb.FINISH_REASON_LENGTH
            assert len(stream.tokens) == 200
        (served,) = (await operator.served()).values()
        assert served.model.context_length == 2048
        assert served.loaded_at_run_time


async def test_what_a_swap_waits_for_too_long_is_cut_off_as_a_lost_backend(tmp_path):
    async with operated(tmp_path) as operator:
        stream = await Stream(operator).begun()
        steps = await operator.load(MODEL_NAME, "lake", drain_timeout={"seconds": 0})
        assert steps[-1].cut_off == 1
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stream.whole()
        fault = fault_from_rpc_error(failed.value)
        assert fault.reason == errors_pb2.ERROR_REASON_BACKEND_LOST
        assert int(fault.metadata["tokens_delivered"]) == len(stream.tokens) > 0


async def test_a_load_that_fails_says_why_and_changes_nothing(tmp_path, monkeypatch):
    async with operated(tmp_path) as operator:
        stream = await Stream(operator).begun()

        async def fails(_: SimEngine) -> None:
            raise EngineStartError("out of memory: 3 GiB are wanted")

        monkeypatch.setattr(SimEngine, "start", fails)
        fault = await operator.refused("LoadModel", name=MODEL_NAME, source="lake")
        assert fault.reason == errors_pb2.ERROR_REASON_MODEL_REFUSED
        assert "3 GiB" in fault.message
        await stream.begun()
        await stream.cancel()
        (served,) = (await operator.served()).values()
        assert not served.loaded_at_run_time


async def test_a_cancelled_load_ends_the_new_engine_and_leaves_the_turn_to_others(
    tmp_path, monkeypatch
):
    closed = asyncio.Event()
    started = asyncio.Event()

    async def never(_: SimEngine) -> None:
        started.set()
        await asyncio.Event().wait()

    async def close(_: SimEngine) -> None:
        closed.set()

    async with operated(tmp_path) as operator:
        with monkeypatch.context() as patch:
            patch.setattr(SimEngine, "start", never)
            patch.setattr(SimEngine, "close", close)
            call = operator.begin_load("lake", "lake")
            assert (await call.read()).phase == Phase.Value("PHASE_CHECKING")
            async with asyncio.timeout(BOUND_S):
                await started.wait()
                busy = await operator.refused("LoadModel", name="pond", source="lake")
                assert busy.reason == errors_pb2.ERROR_REASON_IN_USE
                call.cancel()
                await closed.wait()
        assert await operator.listed() == [MODEL_NAME]

        async def loads() -> bool:
            try:
                await operator.load("lake", "lake")
            except grpc.aio.AioRpcError as error:
                if fault_from_rpc_error(error).reason == errors_pb2.ERROR_REASON_IN_USE:
                    return False
                raise
            return True

        await until(loads)


@pytest.mark.parametrize(
    ("source", "sources", "reason"),
    [
        ("lake", (), errors_pb2.ERROR_REASON_NOT_ENABLED),
        ("/etc", None, errors_pb2.ERROR_REASON_ACCESS_DENIED),
        ("../secret", None, errors_pb2.ERROR_REASON_ACCESS_DENIED),
        ("link-out", None, errors_pb2.ERROR_REASON_ACCESS_DENIED),
        ("files-out", None, errors_pb2.ERROR_REASON_ACCESS_DENIED),
        ("missing", None, errors_pb2.ERROR_REASON_NOT_FOUND),
        ("someone/model", None, errors_pb2.ERROR_REASON_NOT_FOUND),
        ("hf:someone/model", None, errors_pb2.ERROR_REASON_ACCESS_DENIED),
    ],
)
async def test_only_what_the_setting_allows_is_loaded(tmp_path, source, sources, reason):
    changes = {} if sources is None else {"model_sources": sources}
    async with operated(tmp_path, **changes) as operator:
        (tmp_path / "secret").mkdir()
        (tmp_path / "allowed" / "link-out").symlink_to(tmp_path / "secret")
        (tmp_path / "allowed" / "files-out").mkdir()
        (tmp_path / "allowed" / "files-out" / "config.json").symlink_to("/etc/hostname")
        fault = await operator.refused("LoadModel", name="lake", source=source)
        assert fault.reason == reason
        assert await operator.listed() == [MODEL_NAME]


async def test_every_violation_of_a_load_is_named_at_once(tmp_path):
    async with operated(tmp_path) as operator:
        fault = await operator.refused("LoadModel", name="a:b", source="", aliases=["x", "x"])
        assert {v.field for v in fault.violations} == {"name", "source", "aliases[1]"}
        options = {"dtype": "int3", "max_num_seqs": 0, "vllm_args": '{"trust_remote_code": true}'}
        fault = await operator.refused("LoadModel", name="a", source="lake", options=options)
        assert {v.field for v in fault.violations} == {
            "options.dtype",
            "options.max_num_seqs",
            "options.vllm_args",
        }


async def test_the_last_model_leaves_only_when_that_is_meant_and_then_nothing_is_ready(tmp_path):
    async with operated(tmp_path) as operator:
        refused = await operator.refused("UnloadModel", name=MODEL_NAME)
        assert refused.reason == errors_pb2.ERROR_REASON_IN_USE
        await operator.load("lake", "lake")
        assert (await operator.ask("UnloadModel", name=MODEL_NAME)).cut_off == 0
        gone = await operator.refused("UnloadModel", name=MODEL_NAME)
        assert gone.reason == errors_pb2.ERROR_REASON_NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await operator.caller.generate()
        fault = fault_from_rpc_error(failed.value)
        assert fault.reason == errors_pb2.ERROR_REASON_MODEL_NOT_FOUND
        assert fault.work == "not_dispatched"
        assert operator.caller.host.health.is_ready
        await operator.ask("UnloadModel", name="lake", allow_last=True)
        await soon(lambda: not operator.caller.host.health.is_ready)
        await operator.load("lake", "lake")
        await soon(lambda: operator.caller.host.health.is_ready)


async def test_an_adapter_is_a_model_of_its_own_name_with_answers_of_its_own(tmp_path):
    async with operated(tmp_path) as operator:
        loaded = await operator.ask("LoadAdapter", base=MODEL_NAME, name="d", source="dialect")
        assert loaded.model.base == MODEL_NAME
        assert await operator.listed() == [MODEL_NAME, f"{MODEL_NAME}:d"]
        prompt = [300, 301]
        plain = await operator.caller.generate(prompt_token_ids=prompt)
        adapted = await operator.caller.generate(model=f"{MODEL_NAME}:d", prompt_token_ids=prompt)
        assert plain.choices[0].token_ids != adapted.choices[0].token_ids
        stream = await Stream(operator, model=f"{MODEL_NAME}:d").begun()
        unloading = asyncio.create_task(operator.ask("UnloadAdapter", base=MODEL_NAME, name="d"))
        await soon(lambda: f"{MODEL_NAME}:d" not in names_of(operator))
        await stream.begun()
        await stream.cancel()
        assert (await unloading).cut_off == 0
        gone = await operator.refused("UnloadAdapter", base=MODEL_NAME, name="d")
        assert gone.reason == errors_pb2.ERROR_REASON_NOT_FOUND


async def test_an_adapter_that_does_not_fit_is_refused_with_the_cause(tmp_path):
    async with operated(tmp_path, max_adapter_rank=4) as operator:
        write_adapter(tmp_path / "allowed" / "wide", {"layers.0.q_proj": (8, 8)}, rank=8)
        fault = await operator.refused("LoadAdapter", base=MODEL_NAME, name="wide", source="wide")
        assert fault.reason == errors_pb2.ERROR_REASON_MODEL_REFUSED
        assert "rank is 8" in fault.message
        for name in ("a", "b"):
            await operator.ask("LoadAdapter", base=MODEL_NAME, name=name, source="dialect")
        full = await operator.refused("LoadAdapter", base=MODEL_NAME, name="c", source="dialect")
        assert full.reason == errors_pb2.ERROR_REASON_IN_USE
    async with operated(tmp_path / "2", max_adapters=0) as operator:
        off = await operator.refused("LoadAdapter", base=MODEL_NAME, name="c", source="dialect")
        assert off.reason == errors_pb2.ERROR_REASON_NOT_ENABLED
        assert off.metadata["setting"] == "ANABRANCH_ENGINE_MAX_ADAPTERS"


async def test_adapters_of_the_settings_are_there_from_the_start(tmp_path):
    path = tmp_path / "allowed" / "dialect"
    async with operated(tmp_path, adapters=(f"d={path}",)) as operator:
        assert await operator.listed() == [MODEL_NAME, f"{MODEL_NAME}:d"]


async def test_a_sleeping_model_takes_nothing_until_it_is_woken(tmp_path):
    async with operated(tmp_path) as operator:
        stream = await Stream(operator).begun()
        asleep = await operator.ask("Sleep", name=MODEL_NAME, level=2, drain_timeout={"seconds": 0})
        assert (asleep.cut_off, asleep.model.sleep_level) == (1, 2)
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.whole()
        assert await operator.listed() == []
        await soon(lambda: not operator.caller.host.health.is_ready)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await operator.caller.generate()
        fault = fault_from_rpc_error(failed.value)
        assert fault.reason == errors_pb2.ERROR_REASON_MODEL_ASLEEP
        assert fault.retry_after
        for _ in range(2):
            await operator.ask("Wake", name=MODEL_NAME)
        assert await operator.listed() == [MODEL_NAME]
        assert (await operator.caller.generate()).usage.completion_tokens == 16
    async with operated(tmp_path / "2", sleep_mode=False) as operator:
        off = await operator.refused("Sleep", name=MODEL_NAME)
        assert off.reason == errors_pb2.ERROR_REASON_NOT_ENABLED
        assert await operator.listed() == [MODEL_NAME]


async def test_an_open_session_hears_of_changes_and_its_requests_go_on(tmp_path):
    async with operated(tmp_path) as operator:
        call = operator.caller.stub.Session(metadata=operator.caller.metadata, timeout=BOUND_S)
        sampling = pb.Sampling(max_tokens=20_000, ignore_eos=True)
        start = pb.GenerateRequest(model=MODEL_NAME, prompt_token_ids=[300], sampling=sampling)
        frame = session_pb2.SessionRequestFrame(stream=1, start=start)
        await call.write(session_pb2.SessionRequest(frames=[frame]))
        assert [model.name for model in (await call.read()).ready.models] == [MODEL_NAME]
        await operator.load("lake", "lake")
        told = None
        tokens = 0
        while told is None or tokens < 3:
            message = await call.read()
            if message.HasField("models"):
                told = [model.name for model in message.models.models]
                tokens = 0
            tokens += sum(len(frame.chunk.token_ids) for frame in message.frames)
        assert told == ["lake", MODEL_NAME]
        call.cancel()


async def test_the_load_of_a_process_is_that_of_all_its_engines(tmp_path):
    async with operated(tmp_path) as operator:
        await operator.load("lake", "lake")
        streams = [await Stream(operator, model=name).begun() for name in ("lake", MODEL_NAME)]
        service = operator.caller.host.model_service
        assert service is not None
        report = service._handler.load()
        assert report is not None
        assert report.running == 2
        assert report.max_running == 512
        for stream in streams:
            await stream.cancel()


async def test_what_operators_do_is_in_the_trail_before_it_is_done(tmp_path):
    trail = tmp_path / "audit"
    async with operated(tmp_path, audit_dir=trail) as operator:
        secret = '{"hf_token": "hf_0123456789", "block_size": 32}'
        options = {"max_model_len": 2048, "vllm_args": secret}
        await operator.refused("LoadModel", name="lake", source="lake", options=options)
        await operator.load("lake", "lake", options={"max_model_len": 2048}, aliases=["pond"])
        await operator.refused("LoadModel", name="lake", source="/etc")
        await operator.ask("LoadAdapter", base="lake", name="d", source="dialect")
        await operator.ask("UnloadAdapter", base="lake", name="d")
        await operator.ask("Sleep", name="lake")
        await operator.ask("Wake", name="lake")
        await operator.ask("UnloadModel", name="lake")
    files = sorted(trail.glob("*.jsonl"))
    assert files
    lines = "".join(path.read_text() for path in files).splitlines()
    acts = [json.loads(line)["entry"] for line in lines if '"entry"' in line]
    loads = [a["details"] for a in acts if a["action"] == "engine.load_model"]
    assert {a["vllm_args"] for a in loads} == {"", "hf_token,block_size"}
    assert any('"max_model_len": 2048' in a["options"] and a["aliases"] == "pond" for a in loads)
    assert "hf_0123456789" not in "".join(lines)
    found = [(a["action"], a["succeeded"]) for a in acts if a["action"].startswith("engine.")]
    assert found.count(("engine.load_model", False)) >= 2  # begun, and refused
    for action in (
        *("load_model", "load_adapter", "unload_adapter", "sleep", "wake", "unload_model"),
    ):
        assert (f"engine.{action}", True) in found


async def soon(condition: Callable[[], bool], patience: float = BOUND_S) -> None:
    async def holds() -> bool:
        return condition()

    await until(holds, patience)


def names_of(operator: Operator) -> list[str]:
    service = operator.caller.host.model_service
    assert service is not None
    return [model.name for model in service._handler.ready().models]


def test_make_engine_gives_the_simulation_what_the_settings_say_of_adapters():
    engine = make_engine(Settings(engine="sim", max_adapters=3, max_adapter_rank=8))
    assert isinstance(engine, SimEngine)
    assert engine.adapters is not None
    assert (engine.adapters.most, engine.adapters.most_rank) == (3, 8)
