"""What every test shares: reports that travel between parallel workers, and a working Ctrl-C.

Fixtures live beside the tests that use them, and in tests/support.
"""

from __future__ import annotations

import signal
from collections.abc import Generator

import pytest


def pytest_configure() -> None:
    """Lets the programs that tests start hear Ctrl-C.

    A shell starts background work with SIGINT ignored, and children inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
