"""One worker process as its supervisor holds it: spawned, spoken to, ended.

It is a fresh interpreter, not a fork. When to start or end one is the supervisor's decision.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from services.chassis.workers import control
from services.chassis.workers.assignment import Assignment, http_socket


@dataclass(frozen=True, kw_only=True)
class Program:
    """What every worker runs: the module, and the environment with its settings."""

    module: str
    environ: Mapping[str, str]


class Child:
    """A running worker process. Made by `spawn`; `ended` must be awaited."""

    def __init__(
        self,
        index: int,
        number: int,
        directory: str,
        process: asyncio.subprocess.Process,
        line: control.Line,
        started: float,
    ) -> None:
        self.index = index
        self.number = number
        self.http_socket = http_socket(directory, number)
        self.pid = process.pid
        self.started = started
        self.reachable = False
        self.serving = asyncio.Event()
        self.leaving = False
        self.cause = ""
        self._process = process
        self._line = line

    @classmethod
    async def spawn(
        cls, program: Program, index: int, number: int, listen: str, directory: str
    ) -> Child:
        """Starts the process. Raises OSError when it cannot be."""
        ours, theirs = socket.socketpair()
        started = asyncio.get_running_loop().time()
        # Whatever goes wrong or is cancelled from here: a worker without a line ends by itself.
        line = await control.Line.open(ours)
        try:
            with theirs:
                assignment = Assignment(index, number, theirs.fileno(), listen, directory)
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *("-m", program.module, "--worker", assignment.to_argument()),
                    env=dict(program.environ),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                )
        except BaseException:
            line.close()
            raise
        return cls(index, number, directory, process, line, started)

    async def ended(self, hear: Callable[[Child, dict[str, Any]], None]) -> int:
        """Passes its messages to `hear` until it ends, and returns its exit code."""
        async for message in self._line.messages():
            hear(self, message)
        # Its end of the line closes with the process, a moment before the kernel tells its end.
        code = await self._process.wait()
        self._line.close()
        return code

    async def exit(self) -> int:
        """Waits for the end of the process, which `ended` looks after."""
        return await self._process.wait()

    def tell(self, kind: str, **fields: Any) -> None:
        """Sends it a message; without effect once it is gone."""
        self._line.send(kind, **fields)

    def kill(self) -> None:
        """Ends it at once. Without effect once it is gone."""
        if self._process.returncode is None:
            try:
                self._process.kill()
            except ProcessLookupError:
                return
