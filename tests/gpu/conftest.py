"""Tests that need a GPU: skipped where there is none, and never part of `make test`.

Each engine is a real process with the small model; those with the same settings share one start.
"""

from __future__ import annotations

import sys

import pytest

from bench.engine.circumstances import gpu
from tests.support.engines import MODEL


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Says why nothing here can run, where that is so."""
    why = ""
    if gpu() is None:
        why = "no GPU: nvidia-smi is missing or finds none"
    elif not MODEL.is_dir():
        why = "no model: run tools/fetch_model.py"
    if why:
        for item in items:
            if "/gpu/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason=why))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Says at once what failed: time on a machine with a GPU may end before the last test does."""
    if report.failed and "/gpu/" in f"/{report.nodeid}":
        sys.stderr.write(f"\n{report.nodeid}, {report.when}:\n{report.longreprtext}\n")
        sys.stderr.flush()
