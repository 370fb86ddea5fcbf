"""Which variant of an alias a request gets."""

import subprocess
import sys
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.core.policy import Variant
from services.router.core.splits import Split

KEYS = [f"user-{n}" for n in range(4000)]


def split(**weights: float) -> Split:
    return Split("chat", [Variant(model, weight) for model, weight in weights.items()])


def shares(chosen: list[str]) -> dict[str, float]:
    return {model: count / len(chosen) for model, count in Counter(chosen).items()}


def by_key(variants: Split) -> list[str]:
    return [variants.choose(key, Random(0)) for key in KEYS]


def test_a_single_variant_gets_all():
    assert set(by_key(split(only=3.0))) == {"only"}


def test_keys_are_shared_out_by_weight():
    assert shares(by_key(split(a=8.0, b=1.0, c=1.0))) == pytest.approx(
        {"a": 0.8, "b": 0.1, "c": 0.1}, abs=0.02
    )


def test_requests_without_a_key_are_shared_out_by_weight():
    variants, random = split(a=0.95, b=0.05), Random(7)
    chosen = [variants.choose("", random) for _ in range(10_000)]
    assert shares(chosen) == pytest.approx({"a": 0.95, "b": 0.05}, abs=0.01)


def test_a_key_keeps_its_variant_whatever_is_drawn_and_in_whatever_order_variants_stand():
    assert by_key(split(a=1.0, b=2.0, c=3.0)) == by_key(split(c=30.0, a=10.0, b=20.0))
    variants = split(a=1.0, b=1.0)
    assert variants.choose("k", Random(1)) == variants.choose("k", Random(2))


def test_aliases_split_independently():
    twin = Split("code", [Variant("a", 1.0), Variant("b", 1.0)])
    same = sum(
        one == other for one, other in zip(by_key(split(a=1.0, b=1.0)), by_key(twin), strict=True)
    )
    assert 0.45 < same / len(KEYS) < 0.55


def test_another_process_chooses_alike():
    code = (
        "from random import Random\n"
        "from services.router.core.policy import Variant\n"
        "from services.router.core.splits import Split\n"
        "s = Split('chat', [Variant('a', 1.0), Variant('b', 2.0)])\n"
        "print(''.join(s.choose(f'user-{n}', Random(0)) for n in range(64)), end='')"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "".join(by_key(split(a=1.0, b=2.0))[:64])


def test_choices_are_the_same_as_in_earlier_releases():
    variants = split(a=1.0, b=2.0)
    chosen = "".join(variants.choose(f"user-{n}", Random(0)) for n in range(16))
    assert chosen == "aabbababbbbababa"


def test_a_weight_of_zero_gets_nothing_and_the_last_draw_stays_inside():
    variants = split(a=1.0, off=0.0)
    assert set(by_key(variants)) == {"a"}

    class Highest(Random):
        def random(self):
            return 1.0 - 2**-53

    assert split(a=0.1, b=0.2, c=0.3).choose("", Highest()) == "c"


def test_a_model_named_twice_gets_the_sum():
    twice = Split("chat", [Variant("a", 1.0), Variant("b", 2.0), Variant("a", 1.0)])
    assert by_key(twice) == by_key(split(a=2.0, b=2.0))


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": -1.0}, {"a": float("nan")}])
def test_weights_that_say_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="chat"):
        split(**weights)


weights = st.floats(0.05, 20.0)


@given(st.lists(weights, min_size=2, max_size=5), st.integers(0, 4), weights)
@settings(max_examples=40)
def test_a_changed_weight_moves_keys_to_or_from_that_variant_alone(before, which, weight):
    models = [f"m{n}" for n in range(len(before))]
    changed = which % len(before)
    after = [weight if n == changed else w for n, w in enumerate(before)]
    old = Split("chat", map(Variant, models, before))
    new = Split("chat", map(Variant, models, after))
    moved = 0
    for key in KEYS[:800]:
        was, now = old.choose(key, Random(0)), new.choose(key, Random(0))
        if was != now:
            moved += 1
            assert models[changed] == (now if weight > before[changed] else was)
    need = abs(after[changed] / sum(after) - before[changed] / sum(before))
    assert moved / 800 == pytest.approx(need, abs=0.09), "no more than the shares demand"


@given(st.lists(weights, min_size=2, max_size=4), weights)
@settings(max_examples=20)
def test_a_new_variant_takes_keys_and_moves_no_others(before, weight):
    models = [f"m{n}" for n in range(len(before))]
    old = Split("chat", map(Variant, models, before))
    new = Split("chat", [*map(Variant, models, before), Variant("new", weight)])
    for key in KEYS[:300]:
        was, now = old.choose(key, Random(0)), new.choose(key, Random(0))
        assert now in (was, "new")


@given(st.text(max_size=40), st.lists(weights, min_size=1, max_size=5))
def test_any_key_has_a_variant(key, amounts):
    models = [f"m{n}" for n in range(len(amounts))]
    variants = Split("chat", map(Variant, models, amounts))
    assert variants.choose(key, Random(3)) in models
