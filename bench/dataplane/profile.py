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


def summarise(lines: Iterable[str], top: int = 30) -> str:
    """The functions with the most samples of their own, and with the most in all."""
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    count = 0
    for line in lines:
        stack, _, number = line.rpartition(" ")
        frames = stack.split(";")
        count += int(number)
        own[_function(frames[-1])] += int(number)
        for function in {_function(frame) for frame in frames}:
            total[function] += int(number)
    text = [f"{'self':>6} {'total':>6}  function ({count} samples)"]
    for name, hits in own.most_common(top):
        text.append(f"{hits / count:6.1%} {total[name] / count:6.1%}  {name}")
    text.append("by total:")
    for name, hits in total.most_common(top):
        text.append(f"{own[name] / count:6.1%} {hits / count:6.1%}  {name}")
    return "\n".join(text)


def _function(frame: str) -> str:
    """The frame without its line number."""
    return frame.rpartition(":")[0] + ")" if frame.endswith(")") and ":" in frame else frame
