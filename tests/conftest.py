"""What every test shares: reports that travel between parallel workers, a working Ctrl-C, and
property tests that no clock decides.

Fixtures live beside the tests that use them, and in tests/support.
"""

from __future__ import annotations

import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# By itself Hypothesis also judges how long an example took and how large the drawn ones were: on a
# busy machine, or by bad luck, that fails a test of which nothing is wrong.
settings.register_profile(
    "exploring",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# The verdict on a commit is the same each time; who looks for new failures explores.
settings.register_profile("same", settings.get_profile("exploring"), derandomize=True)
# `make fuzz` looks elsewhere, and for much longer.
settings.register_profile("long", settings.get_profile("exploring"), max_examples=20_000)
settings.load_profile("same")


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
