"""Asks a process how it is, over gRPC and over HTTP, as probes do."""

from __future__ import annotations

from typing import Any

import aiohttp
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.waiting import BOUND_S, until

QUESTIONS = ("startup", "readiness", "liveness")


async def asked(channel: grpc.aio.Channel, name: str) -> bool:
    """Whether that name is SERVING. Raises AioRpcError."""
    answer = await health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(service=name), timeout=BOUND_S
    )
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def answers(channel: grpc.aio.Channel) -> tuple[bool, ...]:
    """Startup, readiness, liveness: whether each is SERVING."""
    return tuple([await asked(channel, question) for question in QUESTIONS])


async def until_answers(channel: grpc.aio.Channel, *expected: bool) -> None:
    """Waits for these three answers."""

    async def as_expected() -> bool:
        return await answers(channel) == expected

    await until(as_expected)


async def http_answers(address: str) -> tuple[bool, ...]:
    """The same three over HTTP: whether each is 200."""
    found: dict[str, Any] = {}
    async with aiohttp.ClientSession(f"http://{address}") as http:
        for path in ("/startupz", "/readyz", "/livez", "/healthz"):
            async with http.get(path) as answer:
                assert answer.status in (200, 503)
                found[path] = answer.status == 200
    assert found.pop("/healthz") == found["/livez"]
    return tuple(found.values())


async def reason(address: str, path: str) -> str:
    """What a probe is told over HTTP."""
    async with (
        aiohttp.ClientSession(f"http://{address}") as http,
        http.get(path) as answer,
    ):
        return (await answer.text()).strip()
