"""Takes the looks: CPU a chunk and a request, memory of many streams, the way of a cancel."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from bench import cpu
from bench.cloud.load import Session, many, request
from bench.cloud.plan import Contender, Load, Plan
from bench.cloud.stack import Stack
from bench.dataplane.gateways import LITELLM, installed

_READER = Path(__file__).parent / "reader.py"
_SETTLE_S = 0.3
_READER_S = 600.0


class LookFailed(Exception):
    """A look that shows nothing: answers were not whole, or a reader failed."""


def can_run(contender: Contender) -> bool:
    """Whether what it needs is installed."""
    return contender.kind != "litellm" or installed(LITELLM)


async def cost(stack: Stack, contender: Contender, load: Load) -> dict[str, float]:
    """Microseconds of CPU a chunk, and milliseconds a request. Raises LookFailed."""
    look = _proxy_look if contender.kind == "proxy" else _reader_look
    short = await look(stack, contender, load, load.short)
    long = await look(stack, contender, load, load.long)
    chunk = (long - short) / (load.streams * (load.long - load.short))
    return {
        "chunk_us": chunk * 1e6,
        "request_ms": (short / load.streams - load.short * chunk) * 1e3,
    }


async def _proxy_look(stack: Stack, contender: Contender, load: Load, chunks: int) -> float:
    """CPU seconds of the proxy's processes."""
    async with Session(stack.target, await stack.authorization()) as session:

        def make(number: int, length: int = 4) -> Any:
            return request(contender.dialect, length, load.pace, f"r{number}")

        await asyncio.gather(*(session.answer(make(n)) for n in range(load.streams)))
        await asyncio.sleep(_SETTLE_S)
        before = cpu.seconds(stack.pids())
        await asyncio.gather(*(session.answer(make(n, chunks)) for n in range(load.streams)))
        spent = cpu.seconds(stack.pids()) - before
        _check(session.errors)
    return spent


def _check(errors: list[str]) -> None:
    if errors:
        raise LookFailed(f"{len(errors)} answers failed: {errors[0]}")


async def _reader_look(stack: Stack, contender: Contender, load: Load, chunks: int) -> float:
    """CPU seconds of the reader's process, as it counts them itself."""
    python = str(LITELLM / "bin/python") if contender.kind == "litellm" else sys.executable
    process = await asyncio.create_subprocess_exec(
        python,
        str(_READER),
        contender.kind,
        contender.dialect,
        stack.provider,
        *(str(load.streams), str(chunks), str(load.pace)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_READER_S):
            said, complaint = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise LookFailed(f"{contender.name} took too long") from None
    if process.returncode:
        raise LookFailed(f"{contender.name}: {complaint.decode(errors='replace')[-500:]}")
    found = json.loads(said.splitlines()[-1])
    least = load.streams * chunks
    # Bytes have no chunks of their own: what comes together is one.
    if contender.kind != "aiohttp" and found["chunks"] < least:
        raise LookFailed(f"{contender.name} saw {found['chunks']} of {least} chunks")
    return float(found["cpu"])


async def memory(stack: Stack, plan: Plan) -> dict[str, float]:
    """MiB of the proxy before and at the peak of many streams, and CPU a chunk meanwhile."""
    before = cpu.resident(stack.pids())
    cpu.reset_peak(stack.pids())
    spent = cpu.seconds(stack.pids())
    errors = await many(
        stack.target,
        await stack.authorization(),
        plan.many,
        lambda n: request("openai_chat", plan.many_chunks, plan.many_pace, f"m{n}"),
    )
    _check(errors)
    spent = cpu.seconds(stack.pids()) - spent
    return {
        "idle_mib": before / 2**20,
        "peak_mib": cpu.peak(stack.pids()) / 2**20,
        "all_us": spent / (plan.many * plan.many_chunks) * 1e6,
    }


async def cancels(stack: Stack, plan: Plan, tag: str) -> list[float]:
    """Milliseconds from a caller's cancel to the mock's loss of the connection, one each."""
    asked: dict[str, float] = {}
    async with Session(stack.target, await stack.authorization()) as session:
        for number in range(plan.cancels):
            identity = f"{tag}{number}"
            endless = request("openai_chat", 100_000, plan.cancel_pace, identity)
            asked[identity] = await session.cancelled(endless)
        _check(session.errors)
    await asyncio.sleep(_SETTLE_S)
    lost = await stack.lost()
    missing = [identity for identity in asked if identity not in lost]
    if missing:
        raise LookFailed(f"{len(missing)} connections stayed open after their cancel")
    return [(lost[identity] - moment) * 1e3 for identity, moment in asked.items()]
