"""A real name server on port 53 that only this process and its children see.

A program: it expects namespaces of its own (network and mounts, `command` makes them), where it may
take the port and point /etc/resolv.conf there. It plays one scene against a registry of names and
fails with what went wrong. Debian packages: dnsmasq-base, iproute2.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import uvloop

from services.chassis.registry import Registry, open_registry
from tests.support.waiting import BOUND_S

ROOT = Path(__file__).parents[2]
NAME = "engine-headless.llm.svc.test"
_ENTER = """
ip link set lo up && mount --bind "$1" /etc/resolv.conf && exec "$2" -m tests.support.private_dns
"""


def missing() -> str:
    """Why the scene cannot be played here; empty when it can."""
    for program in ("dnsmasq", "unshare", "ip"):
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            return f"{program} is not installed"
    tried = subprocess.run(["unshare", "-mn", "true"], capture_output=True)
    return "" if tried.returncode == 0 else "this account may not make namespaces"


def command(directory: Path) -> list[str]:
    """The scene, in namespaces of its own."""
    resolver = directory / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    return ["unshare", "-mn", "sh", "-c", _ENTER, "sh", str(resolver), sys.executable]


class NameServer:
    """One dnsmasq, which knows the test's names and denies all others below `test`."""

    def __init__(self, directory: Path) -> None:
        self._hosts = directory / "hosts"
        self._process: subprocess.Popen[bytes] | None = None

    def serve(self, *addresses: str) -> None:
        """Answers with these from now on; starts it where it does not run."""
        self._hosts.write_text("".join(f"{address} {NAME}\n" for address in addresses))
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)
            return
        self._process = subprocess.Popen(
            [
                *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root"),
                *("--pid-file=", "--no-resolv", "--no-hosts", "--local=/test/", "--local-ttl=0"),
                *(f"--addn-hosts={self._hosts}", "--listen-address=127.0.0.1"),
                *("--bind-interfaces", "--port=53"),
            ],
        )

    def refuse(self) -> None:
        """Is gone: nobody listens at its port."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """Takes questions and answers none, until `go_on`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


class Shown:
    """What a watch has shown."""

    def __init__(self, registry: Registry) -> None:
        self.history: list[tuple[str, ...]] = []
        self._news = asyncio.Event()
        self.task = asyncio.ensure_future(self._follow(registry))

    async def _follow(self, registry: Registry) -> None:
        async for instances in registry.watch("anabranch-engine"):
            self.history.append(tuple(i.address for i in instances))
            self._news.set()

    async def until(self, *addresses: str) -> None:
        async with asyncio.timeout(BOUND_S):
            while not self.history or self.history[-1] != addresses:
                await self._news.wait()
                self._news.clear()


async def scene(server: NameServer) -> None:
    """Pods come, go, are all gone, and the name server fails in two ways."""
    server.serve("10.0.0.1", "fd00::1")
    url = f"dns:anabranch-engine={NAME}:50052?refresh=200ms"
    registry = open_registry(url, grace=1.0)
    shown = Shown(registry)
    await shown.until("10.0.0.1:50052", "[fd00::1]:50052")
    server.serve("10.0.0.1", "10.0.0.2", "10.0.0.3")
    await shown.until("10.0.0.1:50052", "10.0.0.2:50052", "10.0.0.3:50052")
    server.serve()
    await shown.until()
    server.serve("10.0.0.2")
    await shown.until("10.0.0.2:50052")
    before = len(shown.history)
    server.refuse()
    await asyncio.sleep(3)  # a dozen questions
    server.serve("10.0.0.2")
    await asyncio.sleep(1)
    server.hang()
    await asyncio.sleep(5)  # several times as long as the machine's resolver waits
    server.go_on()
    server.serve("10.0.0.2", "10.0.0.4")
    await shown.until("10.0.0.2:50052", "10.0.0.4:50052")
    assert all(shown.history[before:]), f"an outage was shown as nobody: {shown.history}"
    await registry.close()
    await shown.task
    print("played")


def main() -> None:
    """Plays the scene."""
    with tempfile.TemporaryDirectory() as directory:
        server = NameServer(Path(directory))
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(scene(server))
        finally:
            server.refuse()


if __name__ == "__main__":
    main()
