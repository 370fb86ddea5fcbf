"""What is used of CPU and memory, and what may be: of the container, where that has limits.

With a limit in its control group (version 2 or 1) usage is that group's, which is what the platform
throttles and kills by. Without one, usage is that of the process and its children, and the limit is
the machine. Files are read at a scrape and at no other time. Alerts on it are elsewhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# What version 1 says where there is no limit: the largest number of pages that it can count.
_UNLIMITED = 1 << 60
_GOOD_FOR_S = 1.0
"""Without limits every process of the machine is looked at, milliseconds for each hundred, and
whoever reaches /metrics may ask as often as they like."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds of CPU so far and cores at most; bytes of memory now and at most."""

    cpu_seconds: float
    cpu_limit: float
    memory_used: int
    memory_limit: int


class ResourceCollector(Collector):
    """The four `anabranch_resources_…` metrics."""

    def __init__(
        self,
        proc: Path = Path("/proc"),
        cgroups: Path = Path("/sys/fs/cgroup"),
        pid: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`pid` is the process in question, by default this one."""
        self._clock = clock
        self._latest: tuple[float, Usage] | None = None
        self._proc = proc
        self._cgroups = cgroups
        self._pid = pid or os.getpid()

    def collect(self) -> Iterator[Metric]:
        """What they are, or were a second ago; nothing on a machine without /proc."""
        try:
            usage = self._recent()
        except OSError:
            return
        yield CounterMetricFamily(
            "anabranch_resources_cpu_seconds",
            "CPU time used by the container, or else by the process and its children",
            usage.cpu_seconds,
        )
        yield GaugeMetricFamily(
            "anabranch_resources_cpu_limit_cores",
            "Cores that may be used: the container's limit, or else the machine's",
            usage.cpu_limit,
        )
        yield GaugeMetricFamily(
            "anabranch_resources_memory_used_bytes",
            "Memory in use by the container without reclaimable files, or else resident memory",
            usage.memory_used,
        )
        yield GaugeMetricFamily(
            "anabranch_resources_memory_limit_bytes",
            "Memory that may be used: the container's limit, or else the machine's",
            usage.memory_limit,
        )

    def _recent(self) -> Usage:
        now, latest = self._clock(), self._latest
        if latest is None or now - latest[0] >= _GOOD_FOR_S:
            latest = self._latest = (now, self.read())
        return latest[1]

    def read(self) -> Usage:
        """The four figures. Raises OSError without /proc."""
        memory = self._memory_of_group()
        cpu = self._cpu_of_group()
        own = None
        if memory is None or cpu is None:
            own = self._own()
        if memory is None:
            assert own is not None
            memory = (own[1], _total_memory(self._proc))
        if cpu is None:
            assert own is not None
            cpu = (own[0], float(len(os.sched_getaffinity(0))))
        return Usage(*cpu, *memory)

    # Control groups: the nearest one, from the process's own upwards, that has a limit.

    def _memory_of_group(self) -> tuple[int, int] | None:
        for group in self._groups("memory"):
            limit = _number(group / "memory.max")
            if limit is not None:
                used = _number(group / "memory.current") or 0
                return max(0, used - _field(group / "memory.stat", "inactive_file")), limit
            limit = _number(group / "memory.limit_in_bytes")
            if limit is not None and limit < _UNLIMITED:
                used = _number(group / "memory.usage_in_bytes") or 0
                return max(0, used - _field(group / "memory.stat", "total_inactive_file")), limit
        return None

    def _cpu_of_group(self) -> tuple[float, float] | None:
        for group in self._groups("cpu"):
            quota = _words(group / "cpu.max")
            if len(quota) == 2 and quota[0].isdecimal():
                used = _field(group / "cpu.stat", "usage_usec") / 1e6
                return used, int(quota[0]) / int(quota[1])
            allowed = _number(group / "cpu.cfs_quota_us") or 0
            period = _number(group / "cpu.cfs_period_us") or 0
            if allowed > 0 and period > 0:
                return self._version_1_seconds(), allowed / period
        return None

    def _version_1_seconds(self) -> float:
        for group in self._groups("cpuacct"):
            used = _number(group / "cpuacct.usage")
            if used is not None:
                return used / 1e9
        return 0.0

    def _groups(self, controller: str) -> Iterator[Path]:
        """Directories that may say something of a controller, the process's own first."""
        for line in _lines(self._proc / str(self._pid) / "cgroup"):
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            mount = self._cgroups / controllers if controllers else self._cgroups
            # In a container the path is often that of the host, and the mount is the group itself.
            parts = [part for part in path.split("/") if part and part != ".."]
            for depth in range(len(parts), -1, -1):
                yield mount.joinpath(*parts[:depth])

    # Without limits: the process, and whom it has started.

    def _own(self) -> tuple[float, int]:
        """CPU seconds and resident bytes of the process and all below it."""
        ticks, pages = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
        children: dict[int, list[tuple[int, int, int]]] = {}
        root: tuple[int, int, int] | None = None
        for name in os.listdir(self._proc):
            if name.isdecimal() and (found := self._stat(int(name))) is not None:
                parent, cpu, resident = found
                one = (int(name), cpu, resident)
                children.setdefault(parent, []).append(one)
                if one[0] == self._pid:
                    root = one
        if root is None:
            raise ProcessLookupError(self._pid)
        cpu = resident = 0
        left = [root]
        while left:
            pid, its_cpu, its_pages = left.pop()
            cpu += its_cpu
            resident += its_pages
            left += children.get(pid, ())
        return cpu / ticks, resident * pages

    def _stat(self, pid: int) -> tuple[int, int, int] | None:
        """Parent, CPU ticks (those of children that have ended included), resident pages."""
        text = "".join(_lines(self._proc / str(pid) / "stat"))
        # The name, in brackets, may hold anything.
        fields = text.rpartition(")")[2].split()
        if len(fields) < 22:
            return None  # it has ended meanwhile
        return int(fields[1]), sum(map(int, fields[11:15])), int(fields[21])


def _total_memory(proc: Path) -> int:
    return _field(proc / "meminfo", "MemTotal:") * 1024


def _field(path: Path, name: str) -> int:
    """The number behind a name in a file of such pairs; 0 where there is none."""
    for line in _lines(path):
        words = line.split()
        if len(words) >= 2 and words[0] == name and words[1].isdecimal():
            return int(words[1])
    return 0


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if words and words[0].lstrip("-").isdecimal() else None


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    """The lines of a file; none where it cannot be read, as of a process that has ended."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
