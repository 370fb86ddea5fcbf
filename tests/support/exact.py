"""A cluster with one real vLLM engine, the ways to ask it, and what vLLM answers offline."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from anabranch import AsyncClient
from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import session_pb2
from services.chassis.host import Host
from services.local_engine import app as engine_app
from services.local_engine import settings as engine_settings
from services.local_engine.on_vllm.engine import VllmEngine
from services.local_engine.on_vllm.options import VllmOptions
from services.local_engine.on_vllm.output_ways import outputs_for
from services.local_engine.on_vllm.outputs import Outputs, Plain, Receive
from tests.support.auth import bearer
from tests.support.engines import MODEL
from tests.support.inprocess import Cluster, cluster, model_stub
from tests.support.offline import CONTEXT, ENVIRONMENT

NAME = "smollm2"
_BOUND_S = 240.0


@dataclass
class Said:
    """What came back, by choice."""

    tokens: list[list[int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    finish: list[int] = field(default_factory=list)
    logprobs: list[list[pb.TokenLogprobs]] = field(default_factory=list)
    usage: pb.Usage = field(default_factory=pb.Usage)
    stop: str = ""

    @classmethod
    def of(cls, chunks: Sequence[pb.GenerateChunk], choices: int) -> Self:
        said = cls([[] for _ in range(choices)], [""] * choices, [0] * choices)
        said.logprobs = [[] for _ in range(choices)]
        for chunk in chunks:
            said.tokens[chunk.index] += chunk.token_ids
            said.texts[chunk.index] += chunk.text
            said.logprobs[chunk.index] += chunk.logprobs
            said.finish[chunk.index] = chunk.finish_reason or said.finish[chunk.index]
            said.stop = chunk.matched_stop or said.stop
            if chunk.HasField("usage"):
                said.usage = chunk.usage
        return said


class CountedOutputs:
    """The engine's own way of taking outputs; counts what came by the short one."""

    def __init__(self, outputs: Outputs) -> None:
        self._outputs = outputs
        self.refuses_late = outputs.refuses_late
        self.short = 0
        self.allowed = True

    async def __aenter__(self) -> Self:
        await self._outputs.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._outputs.__aexit__(*error)

    async def begin(
        self,
        request_id: str,
        tokens: Sequence[int],
        params: Any,
        priority: int,
        receive: Receive,
        further: Mapping[str, Any],
        plain: Plain | None = None,
    ) -> None:
        def counted(token_ids: Sequence[int], text: str) -> None:
            self.short += len(token_ids)
            if plain is not None:
                plain(token_ids, text)

        shorter = counted if plain is not None and self.allowed else None
        await self._outputs.begin(request_id, tokens, params, priority, receive, further, shorter)

    def forget(self, request_id: str) -> None:
        self._outputs.forget(request_id)


@dataclass
class Scene:
    """One running engine behind a router, and credentials for both."""

    engine: VllmEngine
    outputs: list[CountedOutputs]
    direct: Any
    routed: Any
    addresses: Mapping[str, str]
    offline: Mapping[str, Any]
    token: Callable[[], Awaitable[str]]
    """A new one: those of before do not outlive a slow machine's tests."""

    @property
    def short(self) -> int:
        """Tokens that came by the short way so far."""
        return self.outputs[0].short

    def allow(self, *, short: bool) -> Callable[[], None]:
        """Whether jobs take the short way, with our text, or vLLM's own; returns the undoing."""
        tokenizer = self.engine._loaded.tokenizer
        before = tokenizer.token_bytes, self.outputs[0].allowed
        self.outputs[0].allowed = short
        if not short:
            tokenizer.token_bytes = None

        def undo() -> None:
            tokenizer.token_bytes, self.outputs[0].allowed = before

        return undo

    async def ask(self, way: str, request: pb.GenerateRequest) -> Said:
        """By "direct" or "routed", then the RPC, or "client"."""
        whom, _, rpc = way.partition(" ")
        stub = self.direct if whom == "direct" else self.routed
        choices = request.sampling.n or 1
        token = await self.token()
        how: dict[str, Any] = {"metadata": bearer(token), "timeout": _BOUND_S}
        if rpc == "Generate":
            answer = await stub.Generate(request, **how)
            return Said(
                [list(choice.token_ids) for choice in answer.choices],
                [choice.text for choice in answer.choices],
                [choice.finish_reason for choice in answer.choices],
                [list(choice.logprobs) for choice in answer.choices],
                answer.usage,
                answer.choices[0].matched_stop,
            )
        if rpc == "StreamGenerate":
            return Said.of([chunk async for chunk in stub.StreamGenerate(request, **how)], choices)
        if rpc == "Session":
            (said,) = await self.session(stub, [request])
            return said
        async with AsyncClient(self.addresses[whom], token=token) as client:
            answered = await client.generate(request)
        return Said(
            [list(choice.token_ids) for choice in answered.choices],
            [choice.text for choice in answered.choices],
            [
                pb.FinishReason.Value(f"FINISH_REASON_{c.finish_reason.name}")
                for c in answered.choices
            ],
        )

    async def session(self, stub: Any, requests: Sequence[pb.GenerateRequest]) -> list[Said]:
        """All of them in one session."""
        call = stub.Session(metadata=bearer(await self.token()), timeout=_BOUND_S)
        frames = [
            session_pb2.SessionRequestFrame(stream=number, start=request)
            for number, request in enumerate(requests)
        ]
        for frame in frames:
            frame.stream += 1
        await call.write(session_pb2.SessionRequest(frames=frames))
        await call.done_writing()
        chunks: list[list[pb.GenerateChunk]] = [[] for _ in requests]
        async for message in call:
            for frame in message.frames:
                assert frame.WhichOneof("event") == "chunk", frame
                chunks[frame.stream - 1].append(frame.chunk)
        return [
            Said.of(each, request.sampling.n or 1)
            for each, request in zip(chunks, requests, strict=True)
        ]


async def offline(cases: Mapping[str, Any]) -> dict[str, Any]:
    """What vLLM answers by itself, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.offline", str(MODEL)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env=dict(os.environ) | ENVIRONMENT,
    )
    out, err = await process.communicate(json.dumps(cases).encode())
    assert process.returncode == 0, err.decode()[-2000:]
    answers: dict[str, Any] = json.loads(out.decode().splitlines()[-1])
    return answers


@asynccontextmanager
async def scene(directory: Path, cases: Mapping[str, Any]) -> AsyncIterator[Scene]:
    """Starts all of it; the engine as its settings' defaults would have it on a CPU."""
    expected = await offline(cases)
    counted: list[CountedOutputs] = []

    def outputs(llm: Any, version: str) -> Outputs:
        counted.append(CountedOutputs(outputs_for(llm, version)))
        return counted[-1]

    options = VllmOptions(str(MODEL), NAME, max_num_seqs=64, max_model_len=CONTEXT, kv_cache_gib=1)
    engine = VllmEngine(options, outputs=outputs)
    async with cluster(directory, engines=()) as running:
        host = await _start(running, engine)
        await running.backends_ready(1)
        secret = await running.new_client("exact", "generate")
        assert running.router is not None
        async with (
            running.channel(host) as to_engine,
            running.channel(running.router) as to_router,
        ):
            yield Scene(
                engine,
                counted,
                model_stub(to_engine),
                model_stub(to_router),
                {"direct": host.address, "routed": running.router.address},
                expected,
                lambda: running.token("exact", secret),
            )


async def _start(running: Cluster, engine: VllmEngine) -> Host:
    settings = engine_settings.Settings(
        engine="vllm",
        model=str(MODEL),
        served_model_name=NAME,
        max_num_seqs=64,
        max_model_len=CONTEXT,
        **running.common("engine-exact"),
    )
    return await running.stack.enter_async_context(engine_app.running(settings, engine=engine))
