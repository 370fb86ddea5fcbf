"""The interleavings of tests/inprocess, for longer: a whole cluster, and the router by itself."""

import pytest

from tests.inprocess.test_interleavings import run
from tests.support.scripted_world import World

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_any_order_of_events_leaves_answers_whole_and_nothing_behind(tmp_path):
    run(tmp_path, examples=25, steps=40)


@pytest.mark.parametrize("seed", range(1000, 1020))
async def test_any_order_of_events_leaves_requests_whole_and_nothing_behind(seed):
    async with World.open(seed) as world:
        await world.run(steps=400)
