"""One supervised process: its own process group, its log file, and an end that leaves nothing.

It knows how to start, signal, pause and end a process and whatever that process starts. What
to start is in recipes.py; in which order is in cluster.py.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

POLL = 0.02
"""Seconds between looks at a process that is about to end."""

ORPHANS = 3.0
"""Seconds that the children of an ended process may take to notice it."""

Probe = Literal["grpc", "consul", "http"]


class ClusterError(Exception):
    """Something did not start or answer; the text says what, why and where its log is."""


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """What to run and how to see that it works. `env` holds no secret: those are in files."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    probe: Probe
    address: str
    """host:port that the probe asks and others call."""
    http: str = ""
    """host:port of /metrics, if any."""
    start_timeout: float = 120.0
    """Seconds until the probe must have succeeded."""
    drain: float = 30.0
    """Seconds that an ordered end may take; past it the group is killed."""


@dataclass(frozen=True)
class ProcessRecord:
    """What another program needs to find the process again; it is what state.json holds."""

    name: str
    pid: int
    created: float
    """Unix seconds: with the pid, the identity of the process."""
    probe: Probe
    address: str
    http: str
    log: str
    drain: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @property
    def alive(self) -> bool:
        """Whether the process itself runs."""
        return _same_process(self.pid, self.created)

    def members(self) -> list[psutil.Process]:
        """The living processes of its group: itself and what it has started."""
        return list(_group(self.pid, self.created))

    def send(self, number: signal.Signals) -> None:
        """Signals the whole group; nothing happens when it is gone."""
        if self.members():
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                return

    async def end(self) -> bool:
        """Ends the group in order, or by force after `drain` s; True when force was needed."""
        self.send(signal.SIGCONT)
        if self.alive:
            # The process tells its own children; a group-wide SIGTERM would race with that.
            os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + self.drain
        while self.alive and time.monotonic() < deadline:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(POLL)
        forced = self.alive
        # What it has started notices its end a moment later.
        orphans_until = time.monotonic() + ORPHANS
        while (  # noqa: ASYNC110 - no event tells
            not forced and self.members() and time.monotonic() < orphans_until
        ):
            await asyncio.sleep(POLL)
        return await self.kill() or forced

    async def kill(self) -> bool:
        """Kills what is left of the group; True when something was."""
        found = bool(self.members())
        deadline = time.monotonic() + 10.0
        while self.members():
            self.send(signal.SIGKILL)
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.name}: process group {self.pid} cannot be killed")
            await asyncio.sleep(POLL)
        return found


def _same_process(pid: int, created: float) -> bool:
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - created) < 1.0
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _group(pgid: int, created: float) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if (
                os.getpgid(process.pid) == pgid
                and process.create_time() >= created - 1.0
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                yield process
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue


class Running:
    """A process that this program has started."""

    def __init__(self, spec: ProcessSpec, logs: Path, *, detached: bool) -> None:
        """Starts it at once. `detached`: it outlives this program.

        Raises ClusterError when the program cannot be run.
        """
        self.spec = spec
        self.log = logs / f"{spec.name}.log"
        # A process that outlives a crashed test run would hold its ports: the kernel tells it.
        leash = () if detached or not shutil.which("setpriv") else ("setpriv", "--pdeathsig=TERM")
        self._offset = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as out:
            try:
                self._child = subprocess.Popen(
                    (*leash, *spec.argv),
                    env={**inherited(os.environ), **spec.env},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise ClusterError(f"{spec.name}: cannot run {spec.argv[0]}: {error}") from error
        self.record = ProcessRecord(
            spec.name,
            self._child.pid,
            psutil.Process(self._child.pid).create_time(),
            spec.probe,
            spec.address,
            spec.http,
            str(self.log),
            spec.drain,
        )

    @property
    def exit_status(self) -> int | None:
        """How it ended, negative for a signal; None while it runs."""
        return self._child.poll()

    async def wait(self, timeout: float) -> int:
        """Waits for its end; raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while self.exit_status is None:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(POLL)
        return self._child.returncode

    async def end(self) -> bool:
        """Ends it in order, or by force; True when force was needed."""
        try:
            return await self.record.end()
        finally:
            self._child.poll()

    async def kill(self) -> None:
        """Kills it and everything it has started, at once."""
        await self.record.kill()
        self._child.poll()

    def last_lines(self, count: int = 15) -> str:
        """The end of what it logged since it was started, for an error message."""
        with self.log.open("rb") as log:
            log.seek(self._offset)
            lines = log.read().decode("utf-8", "replace").splitlines()
        return (
            "\n".join(f"    {line[:600]}" for line in lines[-count:]) or "    (it logged nothing)"
        )


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without the settings of other Anabranch processes."""
    return {key: value for key, value in environ.items() if not key.startswith("ANABRANCH_")}
