"""A process that verifies credentials as every service does, and says when one is refused.

    python -m bench.auth.follower HOST:PORT     the auth replica whose keys it follows

Reads a JSON object a line: {"id": 1, "credential": "…", "watch": true}. Says for each, in a line,
whether it is accepted; of a watched one also, later, at which moment of the machine's own
monotonic clock it was refused. Several on one machine, and whoever asks, share that clock.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from bench.auth.issuer import AUDIENCE, ISSUER
from services.chassis.auth_client import AuthClient
from services.chassis.authn import Verifier
from services.chassis.errors import Fault, reason_name

_LOOK_EVERY_S = 0.001
_LINE = 1 << 20


class Follower:
    """The other end of such a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._next = 0
        self._answers: dict[int, asyncio.Future[str]] = {}
        self._refused: dict[int, asyncio.Future[float]] = {}

    async def refusal(self, credential: str) -> str:
        """Why a credential is refused; empty when it is accepted."""
        return await self._ask(credential, watch=False)[0]

    async def watch(self, credential: str) -> asyncio.Future[float]:
        """Once it is accepted, what will be the moment of its refusal, in monotonic seconds.

        Raises RuntimeError when it is not accepted now.
        """
        answer, refused = self._ask(credential, watch=True)
        reason = await answer
        if reason:
            raise RuntimeError(f"a new credential was refused: {reason}")
        return refused

    async def read(self) -> None:
        """Takes answers until the process ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            if "refused_at" in said:
                self._refused.pop(said["id"]).set_result(said["refused_at"])
            else:
                self._answers.pop(said["id"]).set_result(said["refusal"])
        for answer in self._answers.values():
            answer.set_exception(RuntimeError("the follower has ended"))
        for refused in self._refused.values():
            refused.set_exception(RuntimeError("the follower has ended"))

    def _ask(
        self, credential: str, *, watch: bool
    ) -> tuple[asyncio.Future[str], asyncio.Future[float]]:
        assert self._process.stdin is not None
        loop = asyncio.get_running_loop()
        self._next += 1
        answer: asyncio.Future[str] = loop.create_future()
        refused: asyncio.Future[float] = loop.create_future()
        self._answers[self._next] = answer
        if watch:
            self._refused[self._next] = refused
        line = json.dumps({"id": self._next, "credential": credential, "watch": watch})
        self._process.stdin.write(line.encode() + b"\n")
        return answer, refused


@asynccontextmanager
async def follower(target: str) -> AsyncIterator[Follower]:
    """A process that follows the replica at this address, until the block is left."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.auth.follower", target),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE,
    )
    this = Follower(process)
    reader = asyncio.create_task(this.read())
    try:
        yield this
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
        await reader


async def _follow(target: str) -> None:
    auth = AuthClient(target, None)
    await auth.follow()
    verifier = Verifier(auth, issuer=ISSUER, audience=AUDIENCE, exchange=auth)
    reader = asyncio.StreamReader(limit=_LINE)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    keeping = asyncio.create_task(verifier.keep_fresh())
    answering: set[asyncio.Task[None]] = set()
    try:
        async for line in reader:
            task = asyncio.create_task(_answer(verifier, json.loads(line)))
            answering.add(task)
            task.add_done_callback(answering.discard)
    finally:
        for task in (keeping, *answering):
            task.cancel()
        await asyncio.gather(keeping, *answering, return_exceptions=True)
        await verifier.close()
        await auth.close()


async def _answer(verifier: Verifier, asked: dict[str, Any]) -> None:
    refusal = await _refusal(verifier, asked["credential"])
    _say({"id": asked["id"], "refusal": refusal})
    if not asked["watch"] or refusal:
        return
    while not await _refusal(verifier, asked["credential"]):  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(_LOOK_EVERY_S)
    _say({"id": asked["id"], "refused_at": time.monotonic()})


async def _refusal(verifier: Verifier, credential: str) -> str:
    try:
        await verifier.verify(credential)
    except Fault as fault:
        return reason_name(fault.reason)
    return ""


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    uvloop.run(_follow(sys.argv[1]))
