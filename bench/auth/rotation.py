"""Whether anything fails while signing keys change: logins, and tokens old and new elsewhere."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import jwt

from anabranch.v1 import auth_pb2 as pb
from bench.auth.follower import Follower, follower
from bench.auth.plan import Plan
from bench.auth.stack import Administrator, replicas

_REMEMBERED = 1000
_MARGIN_S = 0.05


class _Traffic:
    """Callers that log in, and use the new token and an old one, until told to stop."""

    def __init__(self, administrator: Administrator, follower: Follower) -> None:
        self._administrator = administrator
        self._follower = follower
        self._tokens: deque[str] = deque(maxlen=_REMEMBERED)
        self._chance = random.Random(1)  # noqa: S311 - which token, no secret
        self.calls = 0
        self.failures: Counter[str] = Counter()
        self.signed_by: set[str] = set()
        self.stopping = False

    async def caller(self, login: tuple[str, str]) -> None:
        while not self.stopping:
            self.calls += 1
            try:
                token = await self._administrator.login(*login)
            except grpc.aio.AioRpcError as error:
                self.failures[f"login: {error.code().name}"] += 1
                continue
            self.signed_by.add(jwt.get_unverified_header(token)["kid"])
            self._tokens.append(token)
            for kind, one in (("new", token), ("old", self._chance.choice(self._tokens))):
                self.calls += 1
                refusal = await self._follower.refusal(one)
                if refusal:
                    self.failures[f"{kind} token: {refusal}"] += 1


async def look(folder: Path, plan: Plan) -> dict[str, Any]:
    """Rotations, calls meanwhile, failures by kind, seconds, and keys that signed."""
    async with AsyncExitStack() as stack:
        auth = await stack.enter_async_context(replicas(folder))
        target = await auth.start("auth", "bench.auth.replica", str(plan.publish_ahead))
        administrator = await stack.enter_async_context(auth.administrator("auth"))
        verifier = await stack.enter_async_context(follower(target))
        logins = await administrator.clients([f"client-{n}" for n in range(plan.rotation_callers)])
        traffic = _Traffic(administrator, verifier)
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for login in logins:
                group.create_task(traffic.caller(login))
            try:
                for _ in range(plan.rotations):
                    await _rotate(administrator)
            finally:
                traffic.stopping = True
        return {
            "rotations": plan.rotations,
            "keys_that_signed": len(traffic.signed_by),
            "calls": traffic.calls,
            "failures": dict(traffic.failures),
            "seconds": time.monotonic() - began,
        }


async def _rotate(administrator: Administrator) -> None:
    """Returns when the new key has signed for a moment."""
    request = pb.RotateSigningKeyRequest()
    rotated = await administrator.asks(administrator.stub.RotateSigningKey, request)
    active_at = rotated.active_at.ToNanoseconds() / 1e9
    await asyncio.sleep(max(active_at + _MARGIN_S - time.time(), 0.0))
