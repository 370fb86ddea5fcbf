"""The state machine of tests/inprocess/test_interleavings.py, for longer."""

import pytest

from tests.inprocess.test_interleavings import run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_any_order_of_events_leaves_answers_whole_and_nothing_behind(tmp_path):
    run(tmp_path, examples=25, steps=40)
