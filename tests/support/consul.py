"""A real Consul agent in dev mode on free ports, which a test can stop, freeze and start again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from services.chassis.registry import consul_client
from tools.cluster.ports import free_port

ROOT = Path(__file__).resolve().parents[2]


def consul_binary() -> str:
    """The agent: $ANABRANCH_CONSUL, .tools/bin/consul, or PATH. Fails the test without one."""
    candidates = [os.environ.get("ANABRANCH_CONSUL"), str(ROOT / ".tools/bin/consul"), "consul"]
    for candidate in filter(None, candidates):
        if found := shutil.which(candidate):
            return found
    pytest.fail(
        "no consul binary: run `make tools`, put one on PATH, or name it in ANABRANCH_CONSUL"
    )


class ConsulAgent:
    """One dev-mode agent. It keeps its ports over a restart, and nothing else."""

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self._ports = [free_port() for _ in range(4)]
        self._process: asyncio.subprocess.Process | None = None
        self.http_port = self._ports[0]

    @property
    def url(self) -> str:
        """What the setting `registry` takes."""
        return f"consul://127.0.0.1:{self.http_port}"

    async def start(self) -> None:
        """Starts the agent; returns when it has elected itself. Fails the test after a minute.

        Again, it is away for several of the pauses that a watcher makes between two looks: one that
        has not seen it gone cannot tell an empty store from one that was emptied.
        """
        if self._process is not None:
            await asyncio.sleep(5 * consul_client.FLOOR)
        http, server, lan, wan = self._ports
        self._process = await asyncio.create_subprocess_exec(
            self._binary,
            "agent",
            "-dev",
            "-bind=127.0.0.1",
            f"-http-port={http}",
            f"-server-port={server}",
            f"-serf-lan-port={lan}",
            f"-serf-wan-port={wan}",
            "-grpc-port=-1",
            "-dns-port=-1",
            "-log-level=err",
            f"-node=test-{http}",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        leader = f"http://127.0.0.1:{http}/v1/status/leader"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as session:
            for _ in range(1200):
                if self._process.returncode is not None:
                    pytest.fail(f"consul ended with status {self._process.returncode}")
                try:
                    async with session.get(leader) as answer:
                        if answer.status == 200 and await answer.json(content_type=None):
                            return
                except (aiohttp.ClientError, TimeoutError):
                    pass
                await asyncio.sleep(0.05)
        pytest.fail("consul had no leader after a minute")

    async def stop(self) -> None:
        """Kills the agent: everything that it knew is gone."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def freeze(self) -> None:
        """Keeps the sockets open and answers nothing, until `thaw`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def running_consul() -> AsyncIterator[ConsulAgent]:
    """An agent that is up on entry and gone on exit."""
    agent = ConsulAgent(consul_binary())
    try:
        await agent.start()
        yield agent
    finally:
        await agent.stop()
