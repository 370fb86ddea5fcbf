"""Asks a process whether it works, by the means that its kind offers.

It changes nothing and logs nothing. A grpc probe is `grpc.health.v1.Health/Check` for the whole
server; Consul is asked for its leader; anything else for an HTTP status below 500.
"""

from __future__ import annotations

import asyncio
import http.client
import time
import urllib.error
import urllib.request

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tools.cluster.process import ClusterError, Probe, Running

ONCE = 1.0
"""Seconds that one question may take."""

INTERVAL = 0.1
"""Seconds between questions while a process starts."""


async def ask(probe: Probe, address: str) -> str:
    """`SERVING`, or in a few words why not."""
    if probe == "grpc":
        return await _grpc(address)
    path = "/v1/status/leader" if probe == "consul" else "/"
    return await asyncio.to_thread(_http, f"http://{address}{path}", probe)


async def _grpc(address: str) -> str:
    # A channel keeps its connection back-off: a new one asks at once.
    async with grpc.aio.insecure_channel(
        address, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    ) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=ONCE
            )
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _http(url: str, probe: Probe) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=ONCE) as answer:
            body = answer.read().decode("utf-8", "replace").strip()
    except urllib.error.HTTPError as error:
        return "SERVING" if probe == "http" and error.code < 500 else f"HTTP {error.code}"
    except (OSError, http.client.HTTPException):
        return "UNREACHABLE"
    if probe == "consul" and body in ("", '""'):
        return "NO LEADER"
    return "SERVING"


async def until_serving(process: Running) -> None:
    """Waits until the process serves.

    Raises ClusterError with the end of its log when it ends first, or when its start takes
    longer than its specification allows.
    """
    spec = process.spec
    started = time.monotonic()
    seen = "not asked yet"
    while True:
        if process.exit_status is not None:
            raise ClusterError(
                f"{spec.name} ended while it started, exit status {process.exit_status}. "
                f"The end of {process.log}:\n{process.last_lines()}"
            )
        seen = await ask(spec.probe, spec.address)
        if seen == "SERVING":
            return
        if time.monotonic() - started > spec.start_timeout:
            raise ClusterError(
                f"{spec.name} did not serve on {spec.address} within {spec.start_timeout:.0f} s "
                f"(last answer: {seen}). The end of {process.log}:\n{process.last_lines()}"
            )
        await asyncio.sleep(INTERVAL)
