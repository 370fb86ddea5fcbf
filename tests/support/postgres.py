"""A private PostgreSQL server for tests, from the machine's own binaries.

It listens on a Unix socket and a free loopback port, keeps nothing, and is
stopped by its own process id. Debian package: postgresql.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.cluster.ports import free_port

_START_SECONDS = 60.0
_INIT = ("-A", "scram-sha-256", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
_RUN = ("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off")


def binaries() -> Path | None:
    """The folder of the newest installed server; None when there is none."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(found, key=lambda path: float(path.parent.name), default=None)


class PostgresServer:
    """One server with its data; it can be stopped and started again at the same `url`."""

    def __init__(self, bin_dir: Path, home: Path) -> None:
        # The server refuses to run as root.
        account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        self._bin = bin_dir
        self._home = home
        self._as = (account.pw_uid, account.pw_gid) if account else (None, None)
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        password = secrets.token_hex(16)
        self.url = f"postgresql+asyncpg://anabranch:{password}@127.0.0.1:{self._port}/postgres"
        secret = home / "password"
        secret.write_text(password)
        if account is not None:
            for path in (home, secret):
                os.chown(path, account.pw_uid, account.pw_gid)
        made = subprocess.run(
            [
                bin_dir / "initdb",
                "-D",
                home / "data",
                "-U",
                "anabranch",
                "--pwfile",
                secret,
                *_INIT,
            ],
            capture_output=True,
            text=True,
            cwd=home,
            user=self._as[0],
            group=self._as[1],
        )
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stderr}")

    def start(self) -> None:
        """Starts it and waits until it answers. Raises RuntimeError."""
        place = ("-D", self._home / "data", "-p", str(self._port), "-k", self._home)
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", *place, *_RUN],
                stdout=log,
                stderr=log,
                cwd=self._home,
                user=self._as[0],
                group=self._as[1],
            )
        _await_ready(self._process, self._bin, self._port, self._home)

    def stop(self) -> None:
        """Ends it; what it holds stays."""
        process, self._process = self._process, None
        if process is not None:
            # SIGINT: fast shutdown, which ends the sessions that are left.
            process.send_signal(2)
            process.wait(timeout=60)


@contextmanager
def stoppable_postgres() -> Iterator[PostgresServer]:
    """A running server that a test may stop and start."""
    bin_dir = binaries()
    if bin_dir is None:
        raise RuntimeError("no PostgreSQL server is installed")
    home = Path(tempfile.mkdtemp(prefix="anabranch-pg-"))
    try:
        server = PostgresServer(bin_dir, home)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def postgres_server() -> Iterator[str]:
    """Runs a server and yields the URL of its empty default database."""
    with stoppable_postgres() as server:
        yield server.url


def _await_ready(server: subprocess.Popen[bytes], bin_dir: Path, port: int, home: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        ask: list[str | Path] = [bin_dir / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        if subprocess.run(ask).returncode == 0:
            return
        time.sleep(0.05)
    raise RuntimeError(f"PostgreSQL did not start: {(home / 'log').read_text()}")
