"""Whatever happens to the router's own parts in whatever order, each request ends once and whole.

Hedges, repeats, money, lines, breakers, drains and policies are among what happens; see
tests/support/scripted_world.py. tests/cluster runs more and longer ones.
"""

import pytest

from tests.support.scripted_world import World


@pytest.mark.parametrize("seed", range(4))
async def test_any_order_of_events_leaves_requests_whole_and_nothing_behind(seed):
    async with World.open(seed) as world:
        await world.run(steps=150)
