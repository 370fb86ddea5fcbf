"""A supervisor whose workers never come up. Those that do are in tests/cluster/test_workers.py."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from services.chassis.common_settings import WorkerSettings
from services.chassis.registry.static_registry import MemoryRegistry
from services.chassis.workers.child import Program
from services.chassis.workers.shared_port import reserved
from services.chassis.workers.supervisor import CannotRunError, Supervisor


async def test_workers_that_die_at_every_start_end_the_supervisor_with_their_reason(
    monkeypatch: pytest.MonkeyPatch,
):
    program = Program(module="tests.support.dying_worker", environ=os.environ)
    # Not tmp_path: the path of a socket must be short.
    with tempfile.TemporaryDirectory() as folder, reserved("127.0.0.1:0") as listen:
        monkeypatch.setattr("tempfile.tempdir", folder)
        supervisor = Supervisor(WorkerSettings(workers=2), program, MemoryRegistry(), listen)
        with pytest.raises(CannotRunError, match="the moon is in the way") as refused:
            await supervisor.run()
        assert os.listdir(folder) == []
    assert refused.value.code == 1


async def test_a_folder_too_deep_for_sockets_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    program = Program(module="tests.support.dying_worker", environ=os.environ)
    supervisor = Supervisor(WorkerSettings(workers=2), program, MemoryRegistry(), "127.0.0.1:1")
    with pytest.raises(OSError, match="TMPDIR"):
        await supervisor.run()
