"""Sees to it that the engine's own processes do not outlive this one, however it ends.

vLLM computes in a process of its own, which stays behind with all of its memory when this one is
killed outright. A guard process waits on a pipe that only this process holds open: when it
closes, the guard kills what it was told of. Standard library only: this file is also its program.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path


class OrphanGuard:
    """The guard process, from `__init__` to `close`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own file, by our own interpreter
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a signal to our whole process group is not for it
        )

    def watch(self, pids: Iterable[int]) -> None:
        """These processes are to end with this one."""
        assert self._process.stdin is not None
        for pid in pids:
            self._process.stdin.write(f"{pid} {_birth(pid)}\n".encode())
        self._process.stdin.flush()

    def close(self) -> None:
        """Ends the guard, and with it whatever it watches that still runs. Idempotent."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def _birth(pid: int) -> str:
    """When the process started, in ticks: tells it from a later one with the same number."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def _guard(lines: Iterable[str]) -> None:
    watched = [line.split() for line in lines]  # returns once the pipe is closed
    for entry in watched:
        if len(entry) == 2 and _birth(int(entry[0])) == entry[1]:
            # One that ends just now keeps none of the others alive.
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(entry[0]), signal.SIGKILL)


if __name__ == "__main__":
    _guard(sys.stdin)
