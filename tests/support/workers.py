"""A cluster whose router has several workers, and ways to look at each of them."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import psutil
from prometheus_client.parser import text_string_to_metric_families

from anabranch.v1 import admin_pb2, admin_pb2_grpc
from services.chassis.channels import open_channel
from services.chassis.workers import Assignment
from tests.support.auth import bearer, until
from tests.support.waiting import BOUND_S
from tools import identities
from tools.cluster import Cluster


@dataclass(frozen=True)
class WorkerProcess:
    """One worker, found among the supervisor's children."""

    pid: int
    assignment: Assignment


def workers(cluster: Cluster) -> list[WorkerProcess]:
    """The workers that run now, in the order of their start."""
    found = []
    for child in psutil.Process(cluster.processes["router"].record.pid).children():
        try:
            line = child.cmdline()
            if "--worker" in line and child.status() != psutil.STATUS_ZOMBIE:
                text = line[line.index("--worker") + 1]
                found.append(WorkerProcess(child.pid, Assignment.from_argument(text)))
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda worker: worker.assignment.number)


async def metrics(cluster: Cluster, accept: str = "text/plain") -> str:
    """The text at the router's public /metrics."""

    def read() -> str:
        url = f"http://{cluster.processes['router'].record.http}/metrics"
        asked = urllib.request.Request(url, headers={"Accept": accept})
        with urllib.request.urlopen(asked, timeout=BOUND_S) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(read)


async def openmetrics(cluster: Cluster) -> str:
    """The same for a scraper that accepts OpenMetrics."""
    return await metrics(cluster, "application/openmetrics-text; version=1.0.0")


async def values(cluster: Cluster, name: str) -> dict[str, float]:
    """The sum of a metric's series, by worker."""
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(await metrics(cluster)):
        for sample in family.samples:
            if sample.name == name:
                worker = sample.labels["worker"]
                totals[worker] = totals.get(worker, 0.0) + sample.value
    return totals


async def until_workers(cluster: Cluster, count: int, gone: Sequence[WorkerProcess] = ()) -> None:
    """Waits until `count` workers serve, and know the same ready backends; those `gone` are gone.

    The registry tells each worker by itself: one may serve before it has heard of a new backend.
    """

    async def reached() -> bool:
        # In this order: a supervisor that has replaced a dead worker no longer counts it.
        present = workers(cluster)
        if len(present) != count or set(gone) & set(present):
            return False
        serving = await values(cluster, "anabranch_workers_serving")
        return serving["supervisor"] == count and await _know_the_same(cluster)

    await until(reached)


async def _know_the_same(cluster: Cluster) -> bool:
    try:
        replies = await ask_each(cluster, "ListBackends", admin_pb2.ListBackendsRequest())
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    ready = admin_pb2.BACKEND_STATE_READY
    known = {frozenset(b.backend_id for b in r.backends if b.state == ready) for r in replies}
    return len(known) == 1


async def ask_each(cluster: Cluster, method: str, request: Any) -> list[Any]:
    """What each worker says by itself, over its private socket."""
    token = await cluster.token(identities.ADMIN)
    replies = []
    for worker in workers(cluster):
        async with open_channel(worker.assignment.grpc_socket) as channel:
            replies.append(await _call(channel, method, request, token))
    return replies


async def ask_any(cluster: Cluster, method: str, request: Any) -> Any:
    """What the router says; each time over a new connection, so that any worker may be asked."""
    token = await cluster.token(identities.ADMIN)
    own = (("grpc.use_local_subchannel_pool", 1),)
    async with open_channel(cluster.router, options=own) as channel:
        return await _call(channel, method, request, token)


async def _call(channel: grpc.aio.Channel, method: str, request: Any, token: str) -> Any:
    stub = admin_pb2_grpc.RouterAdminServiceStub(channel)
    return await getattr(stub, method)(request, metadata=bearer(token), timeout=BOUND_S)
