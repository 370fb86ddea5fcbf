"""Backends that say exactly what a test tells them to, behind the router's real pool and exchange.

Each is a real gRPC server of Session; only the registry and the tokens are stand-ins.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
from opentelemetry import metrics, trace

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import relay_pb2, session_pb2
from services.chassis.auth_client import Token
from services.chassis.budgets.leases import ShareOfBudget
from services.chassis.errors import Fault, to_status
from services.chassis.model_handler import CallContext, Cancel
from services.chassis.principal import Principal
from services.chassis.registry import Instance
from services.chassis.tasks import Tasks
from services.chassis.tracing import RequestTracer
from services.router.app import assemble
from services.router.core.policy import Objective, Policy
from services.router.core.values import Health
from services.router.handler import RouterHandler
from services.router.legs import Routing
from services.router.observation import Observer
from services.router.response_cache.cache import ResponseCache
from services.router.response_cache.stores import open_stores
from tests.support.auth import until
from tests.support.waiting import BOUND_S

MODEL = "river"
# What a backend without a free slot cannot meet, and any other can.
_POLICY = Policy(objective=Objective(ttft=1.0))
CALLER = Principal("tester", "shop", frozenset({"generate"}), float("inf"), "t")
Frame = relay_pb2.RelaySessionResponseFrame


class Tokens:
    """A token that never expires; remembers which were reported as refused."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    async def token(self) -> Token:
        return Token("mine", time.monotonic() + 3600)

    def was_refused(self, token: Token) -> None:
        self.refused.append(token.value)


class Backend:
    """One scripted backend."""

    def __init__(
        self,
        id: str,
        tier: pb.Tier.ValueType,
        capabilities: Sequence[pb.Capability.ValueType],
        models: Sequence[str] = (MODEL,),
        prices: pb.TokenPrices | None = None,
    ) -> None:
        self.id = id
        self.sessions = 0
        self.may_greet = asyncio.Event()
        self.may_greet.set()
        self.reject: grpc.StatusCode | None = None
        self.cancelled: list[int] = []
        self.masks: list[tuple[int, ...]] = []
        self._ready = session_pb2.SessionReady(
            backend_id=id,
            tier=tier,
            models=[
                pb.ModelInfo(name=model, tiers=[tier], capabilities=capabilities, prices=prices)
                for model in models
            ],
        )
        self._starts: asyncio.Queue[tuple[int, pb.GenerateRequest]] = asyncio.Queue()
        self._context: grpc.aio.ServicerContext | None = None
        self.server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20)])
        self.address = ""

    async def open(self) -> None:
        handler = grpc.stream_stream_rpc_method_handler(
            self._session,
            relay_pb2.RelaySessionRequest.FromString,
            relay_pb2.RelaySessionResponse.SerializeToString,
        )
        self.server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "anabranch.v1.ModelService", {"Session": handler}
                ),
            )
        )
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()

    @property
    def instance(self) -> Instance:
        return Instance(self.id, "anabranch-engine", self.address, {"models": MODEL})

    async def next_start(self) -> tuple[int, pb.GenerateRequest]:
        async with asyncio.timeout(BOUND_S):
            return await self._starts.get()

    async def send(self, *frames: Frame, load: session_pb2.LoadReport | None = None) -> None:
        assert self._context is not None
        await self._context.write(relay_pb2.RelaySessionResponse(frames=frames, load=load))

    async def says(self, **fields: Any) -> None:
        """Sends a message of other things than frames."""
        assert self._context is not None
        await self._context.write(relay_pb2.RelaySessionResponse(**fields))

    async def refuse(self, fault: Fault) -> None:
        """Answers the next start with an error."""
        number, _ = await self.next_start()
        await self.fails(number, fault)

    async def fails(self, number: int, fault: Fault) -> None:
        """Ends a request with an error."""
        await self.send(Frame(stream=number, error=to_status(fault).SerializeToString(), last=True))

    async def crash(self) -> None:
        await self.server.stop(0)

    async def _session(self, requests: Any, context: grpc.aio.ServicerContext) -> None:
        self.sessions += 1
        await self.may_greet.wait()
        await context.write(relay_pb2.RelaySessionResponse(ready=self._ready))
        if self.reject is not None:
            await context.abort(self.reject, "as the test wants it")
        self._context = context
        async for message in requests:
            for frame in message.frames:
                if frame.WhichOneof("action") == "cancel":
                    self.cancelled.append(frame.stream)
                else:
                    self.masks.append(tuple(frame.mask))
                    self._starts.put_nowait(
                        (frame.stream, pb.GenerateRequest.FromString(frame.start))
                    )


class Answer:
    """An outlet that keeps what it gets."""

    def __init__(self) -> None:
        self.chunks: list[pb.GenerateChunk] = []
        self.ends: list[pb.GenerateChunk | Fault] = []
        self.cancel: Cancel = lambda: None
        self._over = asyncio.Event()

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        self.chunks.append(pb.GenerateChunk.FromString(raw))
        if last:
            self.ends.append(self.chunks[-1])
            self._over.set()

    def fail(self, fault: Fault) -> None:
        self.ends.append(fault)
        self._over.set()

    async def fault(self) -> Fault:
        end = await self._end()
        assert isinstance(end, Fault), end
        return end

    async def last(self) -> pb.GenerateChunk:
        end = await self._end()
        assert isinstance(end, pb.GenerateChunk), end
        return end

    async def has_chunks(self, count: int) -> None:
        async def enough() -> bool:
            return len(self.chunks) >= count

        await until(enough)

    async def _end(self) -> pb.GenerateChunk | Fault:
        async with asyncio.timeout(BOUND_S):
            await self._over.wait()
        (end,) = self.ends
        return end


class Scene:
    """A pool in front of scripted backends, and a registry that says what the test says."""

    def __init__(self, routing: Routing, handler: RouterHandler, tokens: Tokens) -> None:
        self.routing = routing
        self.pool = routing.pool
        self.handler = handler
        self.tokens = tokens
        self.listings: asyncio.Queue[tuple[Instance, ...]] = asyncio.Queue()
        self.stack = AsyncExitStack()

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        while True:
            yield await self.listings.get()

    def list(self, *backends: Backend) -> None:
        self.listings.put_nowait(tuple(backend.instance for backend in backends))

    async def backend(
        self,
        id: str,
        tier: pb.Tier.ValueType = pb.TIER_LOCAL,
        capabilities: Sequence[pb.Capability.ValueType] = (
            pb.CAPABILITY_RESUME_TOKENS,
            pb.CAPABILITY_RESUME_TEXT,
        ),
        **more: Any,
    ) -> Backend:
        backend = Backend(id, tier, capabilities, **more)
        await backend.open()
        self.stack.push_async_callback(backend.server.stop, 0)
        return backend

    async def ready(self, *backends: Backend) -> None:
        """Waits until exactly these are ready."""
        wanted = {backend.id for backend in backends}

        async def so() -> bool:
            return wanted == {
                u.backend.id for u in self.pool.uplinks() if u.backend.health is Health.READY
            }

        await until(so)

    def ask(
        self,
        answer: Answer | None = None,
        *,
        caller: Principal = CALLER,
        seconds: float = 600,
        **fields: Any,
    ) -> Answer:
        """Starts a request; a refusal is its answer's fault, as it is for every caller."""
        answer = answer or Answer()
        request = pb.GenerateRequest(**{"model": MODEL, "prompt": "p", **fields})
        deadline = asyncio.get_running_loop().time() + seconds
        context = CallContext(caller, request.request_id or "r", deadline)
        try:
            answer.cancel = self.handler.open(request, context, answer)
        except Fault as fault:
            answer.fail(fault)
        return answer


@asynccontextmanager
async def scene(
    *,
    max_queue_time: float = 600.0,
    policy: Policy = _POLICY,
    in_force: Callable[[], Policy] | None = None,
) -> AsyncIterator[Scene]:
    """A router's parts under a policy, or under what `in_force` says at each moment."""
    # Nobody is shed because a busy machine makes the line stand.
    admission = replace(
        policy.admission, max_wait=max_queue_time, max_waiting=20, codel_interval=600.0
    )
    fixed = replace(policy, admission=admission)
    tokens = Tokens()
    async with (
        open_stores(memory_bytes=1 << 20, redis=None, directory=None, disk_bytes=0) as stores,
        asyncio.TaskGroup() as group,
    ):
        tasks = Tasks(group)
        leases = ShareOfBudget(1, time.time)
        routing = assemble(tokens, tasks, in_force or (lambda: fixed), leases, seed=1)
        pool = routing.pool
        handler = RouterHandler(
            routing,
            tokens,
            Observer(metrics.NoOpMeter("test"), RequestTracer(trace.NoOpTracer(), recording=False)),
            session_pb2.SessionReady,
            ResponseCache(routing.decisions.policy_now, stores, time.time, routing.loop.time),
        )
        running = Scene(routing, handler, tokens)
        tasks.create_task(routing.spending.keep_supplied())
        tasks.create_task(pool.follow(running, "anabranch-engine"))
        try:
            async with running.stack:
                yield running
        finally:
            tasks.cancel_all()


def text_chunk(number: int, first: int, text: str, *ids: int, **fields: Any) -> Frame:
    """A frame with text and tokens; `finish_reason` among the fields makes it the last."""
    raw = pb.GenerateChunk(first_token=first, text=text, token_ids=ids, **fields)
    return Frame(
        stream=number,
        chunk=raw.SerializeToString(),
        last="finish_reason" in fields,
        tokens=len(ids) or 1,
    )
