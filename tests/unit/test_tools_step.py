"""A set-up step that a network fails once is tried again; one that fails for good says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools import step

# Fails until it has been run as often as its second argument says.
PROGRAM = """
import pathlib, sys
seen = pathlib.Path(sys.argv[1])
count = len(seen.read_text()) + 1 if seen.exists() else 1
seen.write_text("x" * count)
print(f"run {count}")
sys.exit(0 if count >= int(sys.argv[2]) else 7)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(step, "PAUSE", 0.0)


def run(folder: Path, works_at: int, tries: int) -> tuple[int, int]:
    """Exit status, and how often the program was run."""
    seen = folder / "seen"
    command = [sys.executable, "-c", PROGRAM, str(seen), str(works_at)]
    status = step.run("fetching", command, folder / "log", "ask somebody", tries)
    return status, len(seen.read_text())


def test_a_step_that_works_is_run_once(tmp_path, capsys):
    assert run(tmp_path, works_at=1, tries=3) == (0, 1)
    assert "ask somebody" not in capsys.readouterr().err


def test_a_step_that_fails_once_is_run_again_and_is_well(tmp_path, capsys):
    assert run(tmp_path, works_at=2, tries=3) == (0, 2)
    said = capsys.readouterr().err
    assert "again in" in said
    assert "ask somebody" not in said


@pytest.mark.parametrize("tries", [1, 3])
def test_a_step_that_fails_for_good_ends_with_its_status_its_log_and_the_hint(
    tmp_path, capsys, tries
):
    assert run(tmp_path, works_at=9, tries=tries) == (7, tries)
    said = capsys.readouterr().err
    assert f"run {tries}" in said
    assert said.count("ask somebody") == 1


def test_a_program_that_is_not_there_is_not_tried_again(tmp_path, capsys):
    command = [str(tmp_path / "nothing")]
    assert step.run("fetching", command, tmp_path / "log", tries=3) == step.CANNOT_RUN
    assert "again in" not in capsys.readouterr().err
