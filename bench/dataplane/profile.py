"""Where the router's CPU time goes under a load: py-spy's samples, summed up by function."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path as FilePath

from bench.dataplane.measure import Generator, look
from bench.dataplane.plan import Cell, Path
from bench.dataplane.stack import Stack

_RATE = 500


class ProfileError(Exception):
    """py-spy did not record; the text says why."""


async def record(
    stack: Stack, generator: Generator, cell: Cell, path: Path, seconds: float, file: FilePath
) -> str:
    """Loads the path, samples the router for so many seconds, returns a table of functions."""
    load = asyncio.create_task(look(stack, generator, cell, path, warm=1.5, window=seconds + 1.0))
    try:
        await asyncio.sleep(2.0)
        await _sample(stack.proxy_pids(path)[0], seconds, file)
    finally:
        sample = await load
    table = summarise(await asyncio.to_thread(_lines, file))
    return f"{cell.label} | {path.label}: {sample['cpu_us_per_token']:.2f} µs/token\n{table}"


async def _sample(pid: int, seconds: float, file: FilePath) -> None:
    py_spy = FilePath(sys.executable).parent / "py-spy"
    child = await asyncio.create_subprocess_exec(
        *(str(py_spy), "record", "--pid", str(pid), "--duration", str(max(1, round(seconds)))),
        *("--rate", str(_RATE), "--format", "raw", "--output", str(file), "--native"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    words, _ = await child.communicate()
    if child.returncode:
        raise ProfileError(words.decode("utf-8", "replace").strip())


def _lines(file: FilePath) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def summarise(lines: Iterable[str], top: int = 25) -> str:
    """The functions with the most samples of their own, and the Python ones with the most in all.

    Waiting for events is left out: it is how an idle thread looks.
    """
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    count = waiting = 0
    for line in lines:
        stack, _, number = line.rpartition(" ")
        frames, hits = stack.split(";"), int(number)
        if frames[-1].startswith(_WAITS):
            waiting += hits
            continue
        count += hits
        own[_function(frames[-1])] += hits
        for function in {_function(frame) for frame in frames}:
            total[function] += hits
    if not count:
        return "the process did nothing"
    text = [f"{'self':>6} {'total':>6}  function ({count} samples, {waiting} more of waiting)"]
    text += [_line(name, own, total, count) for name, _ in own.most_common(top)]
    text.append("by total, Python alone:")
    work = [name for name, hits in total.most_common() if ".py)" in name and hits < 0.97 * count]
    text += [_line(name, own, total, count) for name in work[: 2 * top]]
    return "\n".join(text)


_WAITS = ("epoll_wait", "epoll_pwait", "poll ", "pthread_cond", "futex")


def _line(name: str, own: Counter[str], total: Counter[str], count: int) -> str:
    return f"{own[name] / count:6.1%} {total[name] / count:6.1%}  {name}"


def _function(frame: str) -> str:
    """The frame without its line number."""
    return frame.rpartition(":")[0] + ")" if frame.endswith(")") and ":" in frame else frame
