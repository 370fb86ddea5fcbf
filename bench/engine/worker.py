"""A process of the benchmark that takes orders: one JSON value a line in, one a line out.

`Worker` is this end; `serve` is what the process does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.python_path import python_path
from tools.cluster.process import ORPHANS, inherited
from tools.cluster.recipes import ROOT

_LONGEST_LINE = 2**26
_END_S = 30.0


class WorkerLost(Exception):
    """It ended, answered too late or could not do what was asked; the text says which, and why."""


class Worker:
    """A running process that takes orders."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self._name = name
        self._process = process
        self._log = log

    @classmethod
    @asynccontextmanager
    async def running(
        cls, name: str, module: str, folder: Path, *arguments: str
    ) -> AsyncIterator[Worker]:
        """Starts it; ends it, and what it has started, when the context is left."""
        log = folder / f"{name}.log"
        with log.open("ab") as complaints:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, *arguments),
                cwd=ROOT,
                env=inherited(os.environ) | {"PYTHONPATH": python_path()},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=complaints,
                limit=_LONGEST_LINE,
                start_new_session=True,
            )
        try:
            yield cls(name, process, log)
        finally:
            await _end(process)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ask(self, order: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Has an order carried out. Raises WorkerLost."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(order).encode() + b"\n")
            await stdin.drain()
            async with asyncio.timeout(timeout):
                line = await stdout.readline()
        except TimeoutError:
            raise WorkerLost(f"{self._name} did not answer within {timeout:.0f} s") from None
        except OSError:
            line = b""
        if not line:
            raise WorkerLost(f"{self._name} ended. The end of {self._log}:\n{self._last_lines()}")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise WorkerLost(f"{self._name}: {answer['failed']}")
        return answer

    def _last_lines(self, count: int = 15) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"    {line[:400]}" for line in lines[-count:])


async def _end(process: asyncio.subprocess.Process) -> None:
    """Its input ends, so it does; by force where it does not. It leads a process group."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(_END_S):
            await process.wait()
            # What it has started notices its end a moment later.
            await asyncio.sleep(min(1.0, ORPHANS))
    except TimeoutError:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        await process.wait()


def own_stdout() -> Callable[[Mapping[str, Any]], None]:
    """A way to answer that nobody else in this process writes to: prints go to stderr instead."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def answer(found: Mapping[str, Any]) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    return answer


async def serve(
    carry_out: Callable[[dict[str, Any]], Awaitable[Mapping[str, Any]]],
    answer: Callable[[Mapping[str, Any]], None],
) -> None:
    """Answers orders until there are no more. What one fails with is its answer."""
    reader = asyncio.StreamReader(limit=_LONGEST_LINE)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        try:
            answer(await carry_out(json.loads(line)))
        except Exception as error:  # noqa: BLE001 - the edge: the other side decides what it means
            answer({"failed": f"{type(error).__name__}: {error}"})
