"""Feedback that a worker asks its siblings about: how many questions, over real sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from anabranch.v1 import model_pb2, model_pb2_grpc
from services.chassis import feedback_calls
from services.chassis.errors import Fault
from services.chassis.feedback_calls import FeedbackCalls
from services.chassis.principal import Principal, set_current_caller
from services.chassis.workers.assignment import grpc_socket
from services.chassis.workers.siblings import Roster
from services.router.feedback.answers import unknown
from tests.support.waiting import until

SHOP = Principal("shop-web", "shop", frozenset({"generate"}), 2e9, "t-1")
WRONG = model_pb2.FeedbackRequest(request_id="never-was", rating=1)


class KnowsNothing:
    """A router's handler as far as feedback goes."""

    feedback_is_shared = False

    async def feedback(self, request: model_pb2.FeedbackRequest, caller: Principal) -> Any:
        raise unknown()


class Slow(model_pb2_grpc.ModelServiceServicer):
    """A sibling that takes its time."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()

    async def Feedback(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        self.asked += 1
        await self.may_answer.wait()
        await context.abort(grpc.StatusCode.NOT_FOUND, "")


async def test_wrong_ids_leave_room_on_the_siblings_channel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.chassis.workers.siblings.ANSWER_WITHIN_S", 60.0)
    most, slow = feedback_calls._MOST_QUESTIONS, Slow()
    server = grpc.aio.server()
    model_pb2_grpc.add_ModelServiceServicer_to_server(slow, server)
    server.add_insecure_port(grpc_socket(str(tmp_path), 2))
    await server.start()
    roster = Roster(1, str(tmp_path))
    roster.update([(0, 1, True), (1, 2, True)])
    calls = FeedbackCalls(KnowsNothing(), SimpleNamespace(siblings=roster))  # type: ignore[arg-type]
    context: Any = SimpleNamespace(invocation_metadata=lambda: (("authorization", "Bearer x"),))
    set_current_caller(SHOP, None)

    async def say() -> str:
        with pytest.raises(Fault) as refused:
            await calls.of_caller(WRONG, context)
        return refused.value.code.name

    async def all_asked() -> bool:
        return slow.asked == most

    try:
        waiting = [asyncio.create_task(say()) for _ in range(most)]
        await until(all_asked)
        assert await say() == "RESOURCE_EXHAUSTED"
        assert slow.asked == most, "nothing more went to the sibling"
        slow.may_answer.set()
        assert set(await asyncio.gather(*waiting)) == {"NOT_FOUND"}
        assert await say() == "NOT_FOUND", "the places are free again"
    finally:
        await roster.close()
        await server.stop(0)
