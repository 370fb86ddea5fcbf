"""A fake engine for this benchmark: `python -m bench.dataplane.fake_engine`.

No model, and no simulation of one: every answer is the same serialised chunks, so that the
engine takes as little as possible of the machine that it shares with the proxy under test. It
speaks the real contract through the services' own chassis. As a real engine it works in steps:
in one step each running answer gets one token. Its models differ in the time of a step:
`step-20` takes 20 ms, `step-0` none.

Plain RPCs are served by a bare grpc.aio handler, and at a second door by bare HTTP/2
(lean_server.py). Both favour the proxies that relay them. A third door speaks OpenAI's HTTP API
(openai_server.py), for gateways that speak nothing else.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from anabranch.v1 import errors_pb2, model_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from bench.dataplane import lean_server, openai_server
from bench.dataplane.chunks import CHUNKS, Answer, first_chunk, last_chunk
from bench.dataplane.steps import LONGEST, Steps
from services.chassis import process
from services.chassis.common_settings import CommonSettings
from services.chassis.errors import Fault
from services.chassis.host import Host
from services.chassis.model_handler import CallContext, Cancel, Outlet
from services.chassis.settings import setting

SERVICE = "anabranch-engine"
PREFIX = "ANABRANCH_FAKE_ENGINE_"
_ROOM = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Settings(CommonSettings):
    """What the fake engine can be told."""

    paces: tuple[str, ...] = setting(("0", "20"), help="Times of a step in ms, one model each.")
    lean_listen: str = setting("", help="host:port of the lean door. Empty: none.")
    openai_listen: str = setting("", help="host:port of the door for HTTP. Empty: none.")

    def __post_init__(self) -> None:
        if not all(pace.isdigit() for pace in self.paces):
            raise ValueError("paces are whole milliseconds")


def model_name(pace_ms: int) -> str:
    """The model whose steps take so long."""
    return f"step-{pace_ms}"


class FakeEngine:
    """ModelHandler over the steps of each model."""

    def __init__(self, paces: Sequence[int], identity: Callable[[], str]) -> None:
        self.steps = {model_name(pace): Steps(pace) for pace in paces}
        self._identity = identity
        self._reports = itertools.count(1)

    def open(self, request: pb.GenerateRequest, context: CallContext, outlet: Outlet) -> Cancel:
        """Runs the request; its prompt is not looked at."""
        return self.run(request, outlet, context.request_id)

    def run(self, request: pb.GenerateRequest, outlet: Outlet, request_id: str = "lean") -> Cancel:
        """Runs a request that nobody has looked at."""
        return self.steps_of(request).add(Answer(outlet, request_id, tokens_of(request)))

    def steps_of(self, request: pb.GenerateRequest) -> Steps:
        """The steps of the request's model. Raises Fault MODEL_NOT_FOUND."""
        steps = self.steps.get(request.model)
        if steps is None:
            raise Fault(errors_pb2.ERROR_REASON_MODEL_NOT_FOUND, f"no model {request.model!r}")
        return steps

    async def embed(
        self, request: model_pb2.EmbedRequest, context: CallContext
    ) -> model_pb2.EmbedResponse:
        """Refuses."""
        raise Fault(errors_pb2.ERROR_REASON_UNSUPPORTED, "a fake does not embed")

    async def count_tokens(
        self, request: model_pb2.CountTokensRequest, context: CallContext
    ) -> model_pb2.CountTokensResponse:
        """Refuses."""
        raise Fault(errors_pb2.ERROR_REASON_UNSUPPORTED, "a fake does not count")

    async def list_models(self) -> Sequence[pb.ModelInfo]:
        """One model for each pace."""
        return [
            pb.ModelInfo(
                name=name,
                context_length=32_768,
                tiers=[pb.TIER_LOCAL],
                capabilities=[pb.CAPABILITY_GENERATE, pb.CAPABILITY_RESUME_TOKENS],
                served_model="fake",
            )
            for name in self.steps
        ]

    def ready(self) -> session_pb2.SessionReady:
        """Who this is."""
        ready = session_pb2.SessionReady(
            backend_id=self._identity(),
            tier=pb.TIER_LOCAL,
            version=importlib.metadata.version("anabranch"),
        )
        for name in self.steps:
            ready.models.add(
                name=name,
                tiers=[pb.TIER_LOCAL],
                served_model="fake",
                capabilities=[pb.CAPABILITY_GENERATE, pb.CAPABILITY_RESUME_TOKENS],
            )
        return ready

    def load(self) -> session_pb2.LoadReport:
        """Room for all, always."""
        return session_pb2.LoadReport(
            sequence=next(self._reports),
            running=sum(steps.running for steps in self.steps.values()),
            kv_total_tokens=_ROOM * LONGEST,
            step_time_ratio=1.0,
            max_running=_ROOM,
            prefill_budget=_ROOM,
        )


def tokens_of(request: pb.GenerateRequest) -> int:
    """How long the answer is to be; as long as may be where the request sets no limit."""
    return min(request.sampling.max_tokens or LONGEST, LONGEST)


class BarePlain:
    """StreamGenerate without anything between the RPC and its answer."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    def register(self, _: Any, server: grpc.aio.Server) -> None:
        """Adds it to a server, ahead of the chassis's own."""
        handler = grpc.unary_stream_rpc_method_handler(self.stream_generate)
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "anabranch.v1.ModelService", {"StreamGenerate": handler}
                ),
            )
        )

    async def stream_generate(self, raw: bytes, context: grpc.aio.ServicerContext) -> None:
        """One token a step."""
        request = pb.GenerateRequest.FromString(raw)
        steps, tokens = self._engine.steps_of(request), tokens_of(request)
        write = context.write
        async with aclosing(steps.each(tokens)) as positions:
            async for at in positions:
                if at == tokens - 1:
                    await write(last_chunk(tokens, pb.FINISH_REASON_LENGTH))
                else:
                    await write(CHUNKS[at] if at else first_chunk(request.request_id or "plain"))


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Host]:
    """Runs the fake engine as the other services run."""
    async with Host.open(SERVICE, settings, meta={"tier": "local", "engine": "fake"}) as host:
        engine = FakeEngine([int(p) for p in settings.paces], lambda: host.instance_id)
        host.add_servicer(BarePlain(engine).register, None, "anabranch.v1.ModelService")
        host.add_model_service(engine)
        await host.start()
        for name, steps in engine.steps.items():
            host.tasks.create_task(steps.run(), name=name)
        async with AsyncExitStack() as doors:
            if settings.lean_listen:
                door = lean_server.serving(settings.lean_listen, engine.run)
                await doors.enter_async_context(door)
            if settings.openai_listen:
                by_pace = dict(zip(map(int, settings.paces), engine.steps.values(), strict=True))
                await doors.enter_async_context(
                    openai_server.serving(settings.openai_listen, by_pace)
                )
            await host.serve()
            yield host


if __name__ == "__main__":
    sys.exit(process.main(SERVICE, PREFIX, Settings, running, os.environ, sys.argv[1:]))
