"""What processes have used, from the operating system's own books (Linux, /proc).

CPU time is the scheduler's count in nanoseconds (schedstat): utime and stime are the same count
rounded to 10 ms, too coarse for an idle proxy. Threads that ended are missing from it, so the
processes measured here must keep theirs, which all of them do under steady load.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

_TICK = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """The process and everything it has started."""
    try:
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def seconds(pids: Iterable[int]) -> float:
    """CPU seconds, user and system, that the processes have used so far."""
    return sum(_one(pid) for pid in pids)


def waited(pids: Iterable[int]) -> float:
    """Seconds that the processes could have run and had no core, so far."""
    try:
        return sum(_schedstat(pid, 1) for pid in pids)
    except FileNotFoundError:
        return 0.0


def _one(pid: int) -> float:
    try:
        return _schedstat(pid, 0)
    except FileNotFoundError:
        return _ticks(pid)


def _schedstat(pid: int, column: int) -> float:
    """Seconds in a column of the scheduler's books, over all threads of a process."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as book:
            total += int(book.read().split()[column])
    return total / 1e9


def _ticks(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICK


def machine_busy() -> float:
    """CPU seconds that the whole machine has spent working."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def resident(pids: Iterable[int]) -> int:
    """Bytes of resident memory now."""
    return sum(_status(pid, "VmRSS:") for pid in pids)


def reset_peak(pids: Iterable[int]) -> None:
    """Starts a new count of the peak; without the right to, the old one stays."""
    for pid in pids:
        try:
            Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            continue


def peak(pids: Iterable[int]) -> int:
    """Bytes of resident memory at the peak, summed over the processes."""
    return sum(_status(pid, "VmHWM:") for pid in pids)


def _status(pid: int, field: str) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    except FileNotFoundError:
        return 0
    return 0
