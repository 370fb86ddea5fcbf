"""CPU and memory of the container or, without limits, of real processes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.chassis.resources import ResourceCollector

PROC = Path("/proc")
# Files as the kernel writes them.
VERSION_2 = {
    "memory.max": "1073741824\n",
    "memory.current": "700000000\n",
    "memory.stat": "anon 500000000\nfile 200000000\ninactive_file 150000000\n",
    "cpu.max": "150000 100000\n",
    "cpu.stat": "usage_usec 12500000\nuser_usec 10000000\nsystem_usec 2500000\n",
}


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def collector(tmp_path: Path, membership: str) -> ResourceCollector:
    """This process, in control groups below tmp_path; everything else of /proc is real."""
    proc = tmp_path / "proc"
    proc.mkdir(exist_ok=True)
    own = proc / str(os.getpid())
    own.mkdir(exist_ok=True)
    (own / "cgroup").write_text(membership)
    (own / "stat").write_text((PROC / "self/stat").read_text())
    (proc / "meminfo").write_text((PROC / "meminfo").read_text())
    return ResourceCollector(proc, tmp_path / "cgroup")


@pytest.mark.parametrize(
    ("group", "membership"),
    [
        ("kubepods/pod1/c1", "0::/kubepods/pod1/c1\n"),
        # In a container's own namespace, and where the path is the host's but the mount is not.
        ("", "0::/\n"),
        ("", "0::/system.slice/docker-1.scope\n"),
        ("", "0::/../../elsewhere\n"),
        # The limit is the pod's, the container has none of its own.
        ("kubepods/pod1", "0::/kubepods/pod1/c1\n"),
    ],
)
def test_limits_of_a_version_2_group_are_found(tmp_path: Path, group: str, membership: str):
    write(tmp_path / "cgroup" / group, VERSION_2)
    usage = collector(tmp_path, membership).read()
    assert (usage.cpu_seconds, usage.cpu_limit) == (12.5, 1.5)
    assert (usage.memory_used, usage.memory_limit) == (550_000_000, 1_073_741_824)


def test_limits_of_version_1_groups_are_found(tmp_path: Path):
    write(
        tmp_path / "cgroup/memory/docker/1",
        {
            "memory.limit_in_bytes": "536870912\n",
            "memory.usage_in_bytes": "300000000\n",
            "memory.stat": "cache 1\ninactive_file 7\ntotal_inactive_file 100000000\n",
        },
    )
    write(
        tmp_path / "cgroup/cpu,cpuacct/docker/1",
        {
            "cpu.cfs_quota_us": "50000\n",
            "cpu.cfs_period_us": "100000\n",
            "cpuacct.usage": "2500000000\n",
        },
    )
    usage = collector(tmp_path, "4:memory:/docker/1\n2:cpu,cpuacct:/docker/1\n0::/\n").read()
    assert (usage.cpu_seconds, usage.cpu_limit) == (2.5, 0.5)
    assert (usage.memory_used, usage.memory_limit) == (200_000_000, 536_870_912)


@pytest.mark.parametrize("unlimited", ["max", "9223372036854771712"])
def test_a_group_without_limits_counts_for_nothing(tmp_path: Path, unlimited: str):
    membership = "4:memory:/a\n2:cpu:/a\n0::/a\n"
    write(tmp_path / "cgroup/a", {**VERSION_2, "memory.max": "max\n", "cpu.max": "max 100000\n"})
    limit = unlimited if unlimited != "max" else "9223372036854771712"
    write(tmp_path / "cgroup/memory/a", {"memory.limit_in_bytes": f"{limit}\n"})
    write(tmp_path / "cgroup/cpu/a", {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"})
    usage = collector(tmp_path, membership).read()
    assert usage.cpu_limit == len(os.sched_getaffinity(0))
    assert usage.memory_limit == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < usage.memory_used < usage.memory_limit
    assert usage.cpu_seconds > 0


def test_without_limits_the_children_of_the_process_count_too(tmp_path: Path):
    nowhere = tmp_path / "no groups"
    before = ResourceCollector(PROC, nowhere).read()
    held = 64 * 1024 * 1024
    program = f"x = bytearray({held}); x[::4096] = x[::4096]; print('up', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        with_child = ResourceCollector(PROC, nowhere).read()
        alone = ResourceCollector(PROC, nowhere, child.pid).read()
        child.communicate(b"\n")
    after = ResourceCollector(PROC, nowhere).read()
    assert alone.memory_used > held
    assert with_child.memory_used > before.memory_used + held / 2
    # What an ended child has used stays counted.
    assert after.cpu_seconds >= with_child.cpu_seconds >= before.cpu_seconds
    assert after.cpu_seconds >= before.cpu_seconds + alone.cpu_seconds


def test_the_metrics_have_their_names(tmp_path: Path):
    registry = CollectorRegistry()
    registry.register(ResourceCollector())
    text = generate_latest(registry).decode()
    for name in (
        *("cpu_seconds_total", "cpu_limit_cores"),
        *("memory_used_bytes", "memory_limit_bytes"),
    ):
        assert f"\nanabranch_resources_{name} " in text


def test_scrapes_in_quick_succession_read_the_machine_once(tmp_path: Path):
    now, group = 100.0, tmp_path / "cgroup"
    write(group, VERSION_2)
    collector(tmp_path, "0::/\n")
    scraped = ResourceCollector(tmp_path / "proc", group, clock=lambda: now)

    def used() -> float:
        (_, _, memory, _) = scraped.collect()
        return float(memory.samples[0].value)

    assert used() == 550_000_000
    (group / "memory.current").write_text("900000000\n")
    assert used() == 550_000_000
    now += 1.0
    assert used() == 750_000_000


def test_where_there_is_no_proc_there_is_nothing(tmp_path: Path):
    assert list(ResourceCollector(tmp_path / "none", tmp_path).collect()) == []
