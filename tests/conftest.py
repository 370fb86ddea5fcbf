"""What every test shares: reports that can travel between the workers of a parallel run.

Fixtures live beside the tests that use them, and in tests/support.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Replaces what UTF-8 cannot hold in captured output.

    Tests log such text on purpose, and a worker of pytest-xdist dies of passing it on.
    """
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report
