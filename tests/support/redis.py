"""A private Redis server for tests, from the machine's own binary.

It listens on a free loopback port, keeps nothing, and is stopped by its own process
id. Debian package: redis-server.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from services.chassis.settings import Secret
from tools.cluster.ports import free_port

_START_SECONDS = 60.0


def binary() -> str | None:
    """The installed server; None when there is none."""
    return shutil.which("redis-server") or shutil.which("redis-server", path="/usr/bin")


class RedisServer:
    """A running server. What the test does to it, it undoes."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, password: str) -> None:
        self.port = port
        self.password = password
        self.url = Secret(f"redis://:{password}@127.0.0.1:{port}/0")
        self._process = process

    def client(self) -> redis.Redis:
        """A client of the test's own."""
        return redis.Redis.from_url(self.url.reveal(), socket_timeout=10)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Takes connections and commands, and answers none."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Gone, without a word."""
        self._process.kill()
        self._process.wait(timeout=60)


@contextmanager
def redis_server(*, port: int = 0, password: str = "") -> Iterator[RedisServer]:
    """Runs a server, with the port and password of an earlier one if these are given."""
    program = binary()
    if program is None:
        raise RuntimeError("no Redis server is installed")
    home = Path(tempfile.mkdtemp(prefix="anabranch-redis-"))
    password = password or secrets.token_hex(16)
    port = port or free_port()
    try:
        config = home / "redis.conf"
        config.write_text(
            f'bind 127.0.0.1\nport {port}\ndir {home}\nsave ""\nappendonly no\n'
            f"requirepass {password}\n"
        )
        log = (home / "log").open("wb")
        with log:
            process = subprocess.Popen([program, config], stdout=log, stderr=log, cwd=home)
        server = RedisServer(process, port, password)
        try:
            _await_ready(server, process, home)
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _await_ready(server: RedisServer, process: subprocess.Popen[bytes], home: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with server.client() as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                client.ping()
            except redis.ConnectionError:
                time.sleep(0.02)
            else:
                return
    raise RuntimeError(f"Redis did not start: {(home / 'log').read_text()}")
