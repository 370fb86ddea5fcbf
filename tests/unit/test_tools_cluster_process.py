"""Processes of the demonstration cluster end whole: with what they started, and by name alone."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests.support.waiting import BOUND_S
from tools.cluster import ports, process, state
from tools.cluster.health import until_serving
from tools.cluster.ports import free_port, is_free
from tools.cluster.process import ClusterError, ProcessRecord, ProcessSpec, Running, inherited

ROOT = Path(__file__).resolve().parents[2]

PARENT = """
import subprocess, sys, signal, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
if sys.argv[1] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(process, "ORPHANS", 0.1)


def spec(
    *arguments: str, drain: float = 60.0, start: float = BOUND_S, program: str = PARENT
) -> ProcessSpec:
    return ProcessSpec(
        name="parent",
        argv=(sys.executable, "-c", program, *arguments),
        probe="http",
        address=f"127.0.0.1:{free_port()}",
        drain=drain,
        start_timeout=start,
    )


async def started(tmp_path, spec: ProcessSpec) -> Running:
    running = Running(spec, tmp_path, detached=False)
    async with asyncio.timeout(BOUND_S):
        while "ready" not in running.last_lines():
            await asyncio.sleep(0.02)
    assert len(running.record.members()) == 2
    return running


@pytest.mark.parametrize("manner", ["polite", "deaf"])
async def test_ending_a_process_ends_its_children_too(tmp_path, manner):
    running = await started(tmp_path, spec(manner, drain=0.5))
    # The child of the polite parent survives its parent's SIGTERM: it has to be killed.
    assert await running.end() is True
    assert not running.record.members()
    assert running.exit_status is not None


async def test_killing_a_process_kills_its_children_too(tmp_path):
    running = await started(tmp_path, spec("polite"))
    await running.kill()
    assert not running.record.members()
    assert await running.wait(BOUND_S) == -9


async def test_a_process_without_children_ends_without_force(tmp_path):
    running = Running(spec(program="import time; time.sleep(600)"), tmp_path, detached=False)
    assert await running.end() is False


async def test_a_reused_process_id_is_never_signalled(tmp_path):
    own = psutil.Process()
    record = ProcessRecord("old", own.pid, time.time() + 3600, "http", "x:1", "", "log", 1.0)
    assert not record.alive
    assert not record.members()
    assert await record.end() is False


async def test_a_process_that_ends_at_start_is_reported_with_its_last_words(tmp_path):
    running = Running(
        spec(program="import sys; sys.exit('no such model')"), tmp_path, detached=False
    )
    with pytest.raises(ClusterError, match=r"exit status 1[\s\S]*no such model"):
        await until_serving(running)


async def test_a_process_that_never_serves_is_reported_with_its_log(tmp_path):
    running = await started(tmp_path, spec("polite", start=0.5))
    try:
        with pytest.raises(ClusterError, match=r"UNREACHABLE[\s\S]*parent\.log"):
            await until_serving(running)
    finally:
        await running.kill()


async def test_the_state_file_lets_another_program_end_the_processes(tmp_path):
    running = await started(tmp_path, spec("polite", drain=0.5))
    state.save(tmp_path, [running.record])
    assert await state.stop(state.load(tmp_path)) == ["parent"]
    assert not running.record.members()


def test_callers_end_before_those_they_call():
    record = ProcessRecord("", 1, 0.0, "grpc", "x:1", "", "log", 1.0)
    names = ["consul", "auth", "engine-1", "provider-simulator", "cloud", "river-2", "router"]
    groups = state.in_order([dataclasses.replace(record, name=name) for name in names])
    assert [[r.name for r in group] for group in groups] == [
        ["router"],
        ["engine-1", "cloud", "river-2"],
        ["auth", "provider-simulator"],
        ["consul"],
    ]


def test_no_state_file_means_no_processes(tmp_path):
    assert state.load(tmp_path) == ()


def test_settings_of_the_callers_shell_do_not_reach_the_cluster():
    assert inherited({"ANABRANCH_ROUTER_LISTEN": "x", "PATH": "/bin"}) == {"PATH": "/bin"}


def test_free_ports_are_free_and_never_given_twice():
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    assert all(is_free(port) for port in ports)


def test_a_port_that_one_process_was_given_is_given_to_no_other(monkeypatch):
    """Although nobody has bound it yet; when the one that was given it has ended, it is free."""
    script = (
        "import sys; from tools.cluster.ports import free_port;"
        "print(free_port(), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        taken = int(other.stdout.readline())
        assert is_free(taken)
        guess_first(monkeypatch, taken)
        assert free_port() != taken
        other.stdin.close()
        other.wait()
    guess_first(monkeypatch, taken)
    assert free_port() == taken


def guess_first(monkeypatch, port: int) -> None:
    """Makes the next port that is looked at this one."""
    chosen = random.SystemRandom()
    guesses = itertools.chain([port], iter(lambda: chosen.randrange(20_000, 32_000), None))
    monkeypatch.setattr(ports, "_random", SimpleNamespace(randrange=lambda *_: next(guesses)))
