"""The policy of a router of several workers, in real processes: from a file, and from Consul."""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from anabranch.v1 import admin_pb2
from services.chassis.errors import Fault, fault_from_rpc_error
from tests.support.waiting import until
from tests.support.workers import ask_any, ask_each, until_workers, workers
from tools.cluster import Cluster
from tools.cluster.process import ClusterError
from tools.cluster.recipes import Ports, at

pytestmark = pytest.mark.cluster

KEY = "anabranch/policy"
BAD = "version: 1\nslow_start: soon\nx: 1\n"


def text_of(seconds: int) -> str:
    return f"version: 1\nslow_start: {seconds}s # {seconds}\n"


@asynccontextmanager
async def router(folder: Path, policy: str, count: int = 2) -> AsyncIterator[Cluster]:
    ports = Ports.free()
    # Named, so that a worker which starts without Consul can tell who is an administrator.
    settings = {"POLICY": policy, "AUTH_TARGET": at(ports.auth[0])}
    async with Cluster(
        folder,
        engines=[],
        cloud=False,
        ports=ports,
        router_workers=count,
        router_settings=settings,
    ) as cluster:
        if count > 1:
            await until_workers(cluster, count)
        yield cluster


async def shown(cluster: Cluster) -> list[admin_pb2.GetPolicyResponse]:
    """What each worker has in force."""
    return await ask_each(cluster, "GetPolicy", admin_pb2.GetPolicyRequest())


async def all_have(cluster: Cluster, text: str) -> None:
    async def so() -> bool:
        return {reply.policy_yaml for reply in await shown(cluster)} == {text}

    await until(so)


async def update(cluster: Cluster, text: str, expected: str = "") -> str:
    request = admin_pb2.UpdatePolicyRequest(policy_yaml=text, expected_version=expected)
    return str((await ask_any(cluster, "UpdatePolicy", request)).version)


async def refused(cluster: Cluster, text: str, expected: str = "") -> Fault:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await update(cluster, text, expected)
    return fault_from_rpc_error(caught.value)


def replace(path: Path, text: str) -> None:
    new = path.with_name("new")
    new.write_text(text, encoding="utf-8")
    new.rename(path)


async def test_a_file_and_an_operator_are_obeyed_by_every_worker(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(text_of(1))
    async with router(tmp_path / "run", f"file:{path}", 3) as cluster:
        assert {reply.policy_yaml for reply in await shown(cluster)} == {text_of(1)}
        replace(path, text_of(2))
        await all_have(cluster, text_of(2))
        # In force in every worker when it returns, whichever was asked.
        for seconds in (3, 4, 5):
            version = await update(cluster, text_of(seconds))
            replies = await shown(cluster)
            assert {reply.version for reply in replies} == {version}
            assert {reply.source for reply in replies} == {"admin"}
        bad = await refused(cluster, BAD)
        assert bad.code is grpc.StatusCode.INVALID_ARGUMENT
        assert [violation.field for violation in bad.violations] == ["slow_start", "x"]
        assert {reply.policy_yaml for reply in await shown(cluster)} == {text_of(5)}
        # Of many who replace the same version at the same time one succeeds, in every worker.
        results = await asyncio.gather(
            *(update(cluster, text_of(n), version) for n in range(10, 20)), return_exceptions=True
        )
        won = [result for result in results if isinstance(result, str)]
        lost = [fault_from_rpc_error(r) for r in results if isinstance(r, grpc.aio.AioRpcError)]
        assert (len(won), len(lost)) == (1, 9)
        assert {fault.code for fault in lost} == {grpc.StatusCode.FAILED_PRECONDITION}
        assert {reply.version for reply in await shown(cluster)} == set(won)
        # A worker that takes the place of another has what the others have, also beside a file
        # that is no good.
        replace(path, BAD)
        victim = workers(cluster)[0]
        os.kill(victim.pid, signal.SIGKILL)
        await until_workers(cluster, 3, gone=[victim])
        replies = await shown(cluster)
        assert {reply.version for reply in replies} == set(won)
        replace(path, text_of(6))
        await all_have(cluster, text_of(6))


async def test_workers_that_cannot_use_the_file_end_the_router_with_every_fault(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(BAD)
    with pytest.raises(ClusterError):
        async with router(tmp_path / "run", f"file:{path}"):
            pass
    log = (tmp_path / "run/logs/router.log").read_text()
    assert f"file {path}: slow_start: must be a duration" in log
    assert f"file {path}: x: is not known" in log


async def put(cluster: Cluster, text: str) -> None:
    def send() -> None:
        url = f"http://{cluster.consul}/v1/kv/{KEY}"
        request = urllib.request.Request(url, text.encode(), method="PUT")
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert answer.read().strip() == b"true"

    await asyncio.to_thread(send)


async def written(cluster: Cluster) -> str:
    def read() -> str:
        url = f"http://{cluster.consul}/v1/kv/{KEY}?raw"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(read)


async def test_a_key_of_consul_is_followed_written_and_outlived(tmp_path):
    async with router(tmp_path / "run", f"consul:{KEY}") as cluster:
        assert {reply.source for reply in await shown(cluster)} == {"default"}
        await put(cluster, text_of(1))
        await all_have(cluster, text_of(1))
        assert {reply.source for reply in await shown(cluster)} == {"consul"}
        # Whole or not at all.
        await put(cluster, text_of(2) + BAD.replace("version: 1\n", ""))

        async def told() -> bool:
            return all(len(reply.rejected) == 3 for reply in await shown(cluster))

        await until(told)
        first = await shown(cluster)
        assert {reply.policy_yaml for reply in first} == {text_of(1)}
        # What an operator writes goes to Consul and from there to all.
        version = await update(cluster, text_of(3), first[0].version)
        assert await written(cluster) == text_of(3)
        replies = await shown(cluster)
        assert {reply.version for reply in replies} == {version}
        assert not any(reply.rejected for reply in replies)
        late = await refused(cluster, text_of(4), first[0].version)
        assert late.code is grpc.StatusCode.FAILED_PRECONDITION
        assert await written(cluster) == text_of(3)
        # Without Consul the last good policy stays, for a worker that starts then as well.
        await cluster.kill("consul")
        gone = workers(cluster)[0]
        os.kill(gone.pid, signal.SIGKILL)
        await until_workers(cluster, 2, gone=[gone])
        assert {reply.policy_yaml for reply in await shown(cluster)} == {text_of(3)}
        down = await refused(cluster, text_of(5))
        assert down.code is grpc.StatusCode.UNAVAILABLE
        assert {reply.policy_yaml for reply in await shown(cluster)} == {text_of(3)}
        # It comes back and has forgotten everything: that is no policy.
        await cluster.restart("consul")
        await put(cluster, text_of(6))
        await all_have(cluster, text_of(6))
