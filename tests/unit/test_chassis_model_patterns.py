"""Patterns of model names: what two have in common, and what goes beyond, as sets of names."""

from hypothesis import given
from hypothesis import strategies as st

from services.chassis.model_patterns import (
    ANY,
    MAX_PATTERN,
    allows,
    beyond,
    common,
    covers,
    is_pattern,
)

# So few letters that patterns and names meet often.
NAMES = st.text("ab/", min_size=1, max_size=4)
PATTERNS = st.one_of(st.just(ANY), NAMES, NAMES.map(lambda name: name + ANY))
SETS = st.lists(PATTERNS, max_size=4)


def language(patterns: list[str], names: list[str]) -> set[str]:
    """Which of the names match, said another way than by the code under test."""
    return {
        name
        for name in names
        for p in patterns
        if (name[: len(p) - 1] == p[:-1] if p[-1] == "*" else name == p)
    }


@given(SETS, SETS, st.lists(NAMES, max_size=30))
def test_what_is_common_lets_ask_what_both_let_ask(
    one: list[str], other: list[str], names: list[str]
) -> None:
    both = language(one, names) & language(other, names)
    found = common(one, other)
    assert {name for name in names if allows(found, name)} == both
    assert found == common(other, one)
    assert list(found) == sorted(set(found))


@given(SETS, SETS)
def test_what_is_common_goes_beyond_neither(one: list[str], other: list[str]) -> None:
    found = common(one, other)
    assert beyond(one, found) == beyond(other, found) == []


@given(SETS, SETS, st.lists(NAMES, max_size=30))
def test_what_is_not_beyond_lets_nothing_more_be_asked(
    held: list[str], wanted: list[str], names: list[str]
) -> None:
    if not beyond(held, wanted):
        assert language(wanted, names) <= language(held, names)


@given(SETS, SETS)
def test_what_is_beyond_names_something_that_is_not_held(
    held: list[str], wanted: list[str]
) -> None:
    """Complete, too: for each pattern that is refused there is a name that shows why."""
    for pattern in beyond(held, wanted):
        longest = max((len(other) for other in held), default=0)
        witness = pattern.removesuffix(ANY) + ("c" * (longest + 1) if pattern[-1] == ANY else "")
        assert covers(pattern, witness)
        assert not allows(held, witness)


@given(SETS)
def test_what_is_held_may_be_handed_on_and_everything_covers_all(held: list[str]) -> None:
    assert beyond(held, held) == []
    assert beyond([ANY], held) == []
    assert set(common([ANY], held)) == set(held)
    assert common((), held) == ()


def test_a_star_within_a_name_is_no_pattern() -> None:
    for good in ("*", "a", "a*", "org/model-7b:q4@1.0+x", "a" * MAX_PATTERN):
        assert is_pattern(good), good
    for bad in ("", "**", "a**", "*a", "a*b", "a b", "a\n", "\u0430", "a\0", "a" * 129, "?", "[a]"):
        assert not is_pattern(bad), bad


def test_a_name_is_matched_whole_and_by_its_case() -> None:
    assert covers("sim-river", "sim-river")
    assert not covers("sim-river", "sim-river-2")
    assert not covers("sim-river", "Sim-River")
    assert covers("sim-*", "sim-")
    assert not covers("sim-*", "sim")
    assert not allows((), "sim-river")


def test_a_model_whose_name_ends_in_a_star_needs_a_pattern_that_covers_it_all() -> None:
    """What a caller names is a name, even where it looks like a pattern."""
    assert not covers("sim", "sim*")
    assert not allows(("sim-river",), "*")
