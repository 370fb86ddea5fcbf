"""A response cache whose backend is the test itself, and callers that keep what they get."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from anabranch.v1 import generation_pb2 as pb
from services.chassis.answers import AnswerBuilder
from services.chassis.errors import Fault
from services.chassis.model_handler import CallContext, Cancel, Outlet
from services.chassis.principal import Principal
from services.chassis.tasks import Tasks
from services.router.core.policy import Policy, TenantRules
from services.router.response_cache.cache import ResponseCache
from services.router.response_cache.guarded import GuardedTier
from services.router.response_cache.memory import MemoryTier
from services.router.response_cache.stores import Stores
from tests.support.waiting import BOUND_S

POLICY = Policy(tenants={"*": TenantRules(cache=True)})
STOP = pb.FINISH_REASON_STOP
RECEIPT = pb.RouteReceipt(
    tier=pb.TIER_LOCAL,
    backend_id="engine-1",
    served_model="river-8b",
    cost_microusd=5,
    attempts=[pb.RouteAttempt(backend_id="engine-1", tier=pb.TIER_LOCAL)],
)


class Started:
    """A request that reached the backend; the test answers it as a router's exchange would."""

    def __init__(self, request: pb.GenerateRequest, context: CallContext, outlet: Outlet) -> None:
        self.request = request
        self.context = context
        self.cancelled = False
        self._outlet = outlet
        self._position = 0

    def say(self, *words: str) -> None:
        """One token a word, each in a chunk of its own."""
        for word in words:
            chunk = pb.GenerateChunk(text=word, first_token=self._position, token_ids=[7])
            if self._position == 0:
                chunk.request_id = self.context.request_id
            self._position += 1
            self._outlet.chunk(chunk.SerializeToString(), last=False, tokens=1)

    def end(self, reason: pb.FinishReason = STOP, **receipt: Any) -> None:
        """The last chunk, with usage and a receipt."""
        last = pb.GenerateChunk(
            finish_reason=reason,
            first_token=self._position,
            usage=pb.Usage(prompt_tokens=3, completion_tokens=self._position),
            receipt=RECEIPT,
        )
        last.receipt.MergeFrom(pb.RouteReceipt(**receipt))
        if self._position == 0:
            last.request_id = self.context.request_id
        self._outlet.chunk(last.SerializeToString(), last=True, tokens=0)

    def fail(self, fault: Fault) -> None:
        self._outlet.fail(fault)

    def cancel(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            self.end(pb.FINISH_REASON_CANCELLED)


class Caller:
    """The outlet of one request, and its end."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.chunks: list[pb.GenerateChunk] = []
        self.tokens = 0
        self.ends: list[pb.GenerateChunk | Fault] = []
        self.over = asyncio.Event()
        self.cancel: Cancel = lambda: None

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        assert not self.ends, "an outlet is ended once"
        self.chunks.append(pb.GenerateChunk.FromString(raw))
        self.tokens += tokens
        if last:
            self.ends.append(self.chunks[-1])
            self.over.set()

    def fail(self, fault: Fault) -> None:
        assert not self.ends, "an outlet is ended once"
        self.ends.append(fault)
        self.over.set()

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def answer(self) -> pb.GenerateResponse:
        """The whole answer, which must be complete."""
        (end,) = self.ends
        assert isinstance(end, pb.GenerateChunk), end
        builder = AnswerBuilder()
        for chunk in self.chunks:
            builder.add(chunk)
        return builder.response()

    @property
    def fault(self) -> Fault:
        (end,) = self.ends
        assert isinstance(end, Fault), end
        return end

    async def answered(self) -> pb.GenerateResponse:
        async with asyncio.timeout(BOUND_S):
            await self.over.wait()
        return self.answer


class Scene:
    """One cache; `refuse` makes the backend refuse what it is sent."""

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks
        self.now = 1_000_000.0
        self.policy = POLICY
        self.started: list[Started] = []
        self.refuse: Fault | None = None
        self.memory = MemoryTier(1 << 20)
        self.cache = self.new_cache()
        self._ids = 0

    def new_cache(self, slower: Sequence[GuardedTier] = ()) -> ResponseCache:
        self.cache = ResponseCache(
            lambda: self.policy,
            Stores(self.memory, slower, self.tasks),
            lambda: self.now,
            asyncio.get_running_loop().time,
        )
        return self.cache

    def start(self, request: pb.GenerateRequest, context: CallContext, outlet: Outlet) -> Cancel:
        if self.refuse is not None:
            raise self.refuse
        started = Started(request, context, outlet)
        self.started.append(started)
        return started.cancel

    @property
    def last(self) -> Started:
        return self.started[-1]

    def ask(
        self,
        prompt: str = "p",
        *,
        tenant: str = "shop",
        timeout: float = 30.0,
        request_id: str = "",
        stands_for: str = "",
        mask: frozenset[int] = frozenset(),
        **fields: Any,
    ) -> Caller:
        """Starts a request as the router would; a refusal is its caller's fault."""
        self._ids += 1
        caller = Caller(request_id or f"r{self._ids}")
        request = pb.GenerateRequest(
            **{
                "model": "river",
                "prompt": prompt,
                "sampling": pb.Sampling(temperature=0),
                "request_id": caller.request_id,
                **fields,
            }
        )
        principal = Principal("tester", tenant, frozenset({"generate"}), float("inf"), "t")
        deadline = asyncio.get_running_loop().time() + timeout
        context = CallContext(principal, caller.request_id, deadline, mask=mask)
        model = stands_for or request.model
        assert self.cache.takes(request, model)
        try:
            caller.cancel = self.cache.open(request, context, caller, self.start, model)
        except Fault as fault:
            caller.fail(fault)
        return caller


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    async with asyncio.TaskGroup() as group:
        tasks = Tasks(group)
        try:
            yield Scene(tasks)
        finally:
            tasks.cancel_all()
