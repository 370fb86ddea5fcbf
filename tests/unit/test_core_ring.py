"""Which backend a key belongs to."""

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.core.ring import Ring

KEYS = [f"user-{n}" for n in range(4000)]
EIGHT = [f"gpu-{n}" for n in range(8)]

names = st.lists(st.text(max_size=8), min_size=1, max_size=6, unique=True)


def test_an_empty_ring_has_no_holder():
    assert Ring([]).holder("k") == ""


def test_every_backend_gets_about_its_share():
    shares = Counter(map(Ring(EIGHT).holder, KEYS))
    assert set(shares) == set(EIGHT)
    for share in shares.values():
        assert share / len(KEYS) == pytest.approx(1 / 8, abs=0.06)


def test_one_that_leaves_moves_its_keys_and_no_others():
    before, after = Ring(EIGHT), Ring(EIGHT[:-1])
    for key in KEYS:
        was, now = before.holder(key), after.holder(key)
        assert now == was if was != EIGHT[-1] else now != was


def test_its_keys_are_spread_over_those_that_stay():
    before, after = Ring(EIGHT), Ring(EIGHT[:-1])
    taken = Counter(after.holder(key) for key in KEYS if before.holder(key) == EIGHT[-1])
    assert set(taken) == set(EIGHT[:-1])


@settings(max_examples=50)
@given(names, st.text(max_size=8), st.lists(st.text(), max_size=50))
def test_one_that_comes_takes_keys_and_moves_no_others(backends, new, keys):
    before, after = Ring(backends), Ring([*backends, new])
    for key in keys:
        assert after.holder(key) in (before.holder(key), new)


@settings(max_examples=50)
@given(names, st.randoms(use_true_random=False), st.lists(st.text(), max_size=50))
def test_the_order_of_backends_does_not_matter(backends, random, keys):
    shuffled = list(backends)
    random.shuffle(shuffled)
    one, other = Ring(backends), Ring(shuffled)
    for key in keys:
        assert one.holder(key) == other.holder(key)
        assert one.holder(key) in backends


def test_another_process_finds_the_same_holders():
    code = (
        "from services.router.core.ring import Ring\n"
        "r = Ring([f'gpu-{n}' for n in range(8)])\n"
        "print(' '.join(r.holder(f'user-{n}') for n in range(64)), end='')"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == list(map(Ring(EIGHT).holder, KEYS[:64]))


def test_holders_are_the_same_as_in_earlier_releases():
    """Routers of two releases stand side by side while one is replaced by the other."""
    held = "".join(Ring("abcd").holder(f"user-{n}") for n in range(16))
    assert held == "bcdaabaabbdddbdd"
