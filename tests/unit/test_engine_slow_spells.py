"""A simulation is slow when its schedule says so."""

from __future__ import annotations

import pytest

from services.local_engine.settings import Settings
from services.local_engine.slow_spells import SlowSpell, factor_at, slow_spells


def test_a_spell_begins_and_ends():
    spells = slow_spells("at=10s,for=5s,factor=3")
    assert [factor_at(spells, now) for now in (0, 9.9, 10, 14.9, 15, 1000)] == [1, 1, 3, 3, 1, 1]


def test_a_spell_may_come_back():
    spells = slow_spells("at=1s, for=500ms, factor=2, every=10s")
    assert [factor_at(spells, now) for now in (0, 1.2, 1.6, 11.2, 21.4, 22)] == [1, 2, 1, 2, 2, 1]


def test_spells_that_overlap_multiply():
    spells = slow_spells("at=0,for=1m,factor=2; at=30s,for=10s,factor=0.25;")
    assert [factor_at(spells, now) for now in (5, 35, 45, 65)] == [2, 0.5, 2, 1]
    assert slow_spells("") == ()
    assert spells[1] == SlowSpell(30, 10, 0.25)


@pytest.mark.parametrize(
    "text",
    [
        "3",
        "at=1s",
        "at=1s,for=2s",
        "at=1s,for=2s,factor=0",
        "at=1s,for=2s,factor=x",
        "at=x,for=2s,factor=2",
        "at=-1s,for=2s,factor=2",
        "at=1s,at=1s,for=2s,factor=2",
        "at=1s,for=2s,factor=2,every=1s",
        "at=1s,for=2s,factor=2,often=1",
        "at=1s,for=2s,factor=nan",
    ],
)
def test_a_schedule_that_means_nothing_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011
        slow_spells(text)
    with pytest.raises(ValueError, match="sim_slow_spells"):
        Settings(sim_slow_spells=text)
