"""What an engine has started ends with it, even when it is killed outright."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.waiting import BOUND_S

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
PARENT = """
import subprocess, sys, time
from services.local_engine.on_vllm.orphan_guard import OrphanGuard
guard = OrphanGuard()
child = subprocess.Popen(["sleep", "300"])
guard.watch([child.pid])
print(child.pid, flush=True)
if sys.argv[1] == "close":
    guard.close()
    print(child.wait(), flush=True)
else:
    time.sleep(300)
"""


def parent(mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, mode], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_killed_parent_leaves_no_child_behind():
    with parent("wait") as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert runs(child)
        process.kill()
        deadline = time.monotonic() + BOUND_S
        while runs(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        survived = runs(child)
        if survived:
            os.kill(child, signal.SIGKILL)
        assert not survived


def test_closing_the_guard_ends_what_it_watches():
    with parent("close") as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert int(process.stdout.readline()) == -signal.SIGKILL
