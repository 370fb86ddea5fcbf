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


@contextmanager
def postgres_server() -> Iterator[str]:
    """Runs a server and yields the URL of its empty default database."""
    bin_dir = binaries()
    if bin_dir is None:
        raise RuntimeError("no PostgreSQL server is installed")
    # The server refuses to run as root.
    account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="anabranch-pg-"))
    password = secrets.token_hex(16)
    try:
        secret = home / "password"
        secret.write_text(password)
        if account is not None:
            for path in (home, secret):
                os.chown(path, account.pw_uid, account.pw_gid)
        user, group = (account.pw_uid, account.pw_gid) if account else (None, None)
        data = home / "data"
        made = subprocess.run(
            [bin_dir / "initdb", "-D", data, "-U", "anabranch", "--pwfile", secret, *_INIT],
            capture_output=True,
            text=True,
            cwd=home,
            user=user,
            group=group,
        )
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stderr}")
        port = free_port()
        log = (home / "log").open("wb")
        with log:
            server = subprocess.Popen(
                [bin_dir / "postgres", "-D", data, "-p", str(port), "-k", home, *_RUN],
                stdout=log,
                stderr=log,
                cwd=home,
                user=user,
                group=group,
            )
        try:
            _await_ready(server, bin_dir, port, home)
            yield f"postgresql+asyncpg://anabranch:{password}@127.0.0.1:{port}/postgres"
        finally:
            # SIGINT: fast shutdown, which ends the sessions that are left.
            server.send_signal(2)
            server.wait(timeout=60)
    finally:
        shutil.rmtree(home, ignore_errors=True)


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
