"""Which beginnings of prompts are thought to be held, beside a plain dictionary of sets."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.router.core.prefix import TOKENS_PER_BLOCK, PrefixIndex, cached_tokens


def test_the_depth_of_a_match_is_that_of_each_backend():
    index = PrefixIndex()
    index.sent("a", (1, 2, 3))
    index.sent("b", (1,))
    index.sent("c", (7, 8))
    assert index.match((1, 2, 3, 4)) == {"a": 3, "b": 1}
    assert index.match((1, 9)) == {"a": 1, "b": 1}
    assert index.match(()) == index.match((9,)) == {}


def test_beyond_its_capacity_the_least_recently_used_leaves_deepest_first():
    index = PrefixIndex(capacity=4)
    index.sent("a", (1, 2, 3))
    index.sent("a", (7, 8))
    assert index.match((1, 2, 3)) == {"a": 2}
    index.sent("a", (1, 2))
    index.sent("a", (9,))
    assert index.match((7, 8)) == {"a": 1}, "used longest ago, deepest first"
    assert index.match((1, 2)) == {"a": 2}


def test_a_prompt_longer_than_the_capacity_keeps_its_beginning():
    index = PrefixIndex(capacity=3)
    index.sent("a", tuple(range(10)))
    assert index.match(tuple(range(10))) == {"a": 3}


def test_the_beginning_that_many_prompts_share_outlives_what_follows_it():
    index = PrefixIndex(capacity=10)
    for n in range(100):
        index.sent("a", (0, 1, 1000 + n, 2000 + n))
    assert index.match((0, 1, 5)) == {"a": 2}


def test_a_smaller_capacity_counts_from_the_next_prompt_on():
    index = PrefixIndex(capacity=10)
    index.sent("a", tuple(range(8)))
    index.capacity = 2
    index.sent("a", (50,))
    assert index.count("a") == 2


def test_one_that_reports_is_believed_and_nothing_is_assumed():
    index = PrefixIndex()
    index.sent("a", (1, 2))
    index.reports("a")
    assert index.match((1, 2)) == {}
    index.sent("a", (1, 2))
    assert index.match((1, 2)) == {}
    index.stored("a", (1,))
    assert index.match((1, 2)) == {"a": 1}
    index.forget("a")
    index.sent("a", (1, 2))
    assert index.match((1, 2)) == {"a": 2}, "it begins anew, and may not report any more"


def test_a_hole_in_what_is_held_is_only_a_wrong_hint():
    index = PrefixIndex()
    index.stored("a", (1, 2, 3))
    index.removed("a", (2,))
    assert 1 <= index.match((1, 2, 3))["a"] <= 3
    index.removed("a", (1,))
    assert index.match((1, 2, 3)) == {}


@given(st.integers(0, 5000), st.integers(1, 100_000))
def test_at_least_one_token_is_always_computed(blocks, prompt):
    saved = cached_tokens(blocks, prompt)
    assert 0 <= saved < prompt
    assert saved <= blocks * TOKENS_PER_BLOCK


BACKENDS = ("a", "b", "c")
CAPACITY = 6
# Prompts of a tree: a block names all before it, as a chain of hashes does.
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=4).map(
    lambda turns: tuple(
        int("1" + "".join(map(str, turns[: depth + 1]))) for depth in range(len(turns))
    )
)


class Held(RuleBasedStateMachine):
    """`model` is what each backend holds, the next to leave first."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(CAPACITY)
        self.model: dict[str, list[int]] = {name: [] for name in BACKENDS}
        self.reporting: set[str] = set()
        self.whole = dict.fromkeys(BACKENDS, True)

    def add(self, name, blocks):
        held = [block for block in self.model[name] if block not in blocks]
        self.model[name] = (held + list(reversed(blocks)))[-CAPACITY:]

    @rule(name=st.sampled_from(BACKENDS), prompt=prompts)
    def sent(self, name, prompt):
        self.index.sent(name, prompt)
        if name not in self.reporting:
            self.add(name, prompt)

    @rule(name=st.sampled_from(BACKENDS), prompt=prompts)
    def stored(self, name, prompt):
        self.index.stored(name, prompt)
        self.add(name, prompt)

    @rule(name=st.sampled_from(BACKENDS), prompt=prompts, count=st.integers(0, 4))
    def removed(self, name, prompt, count):
        gone = prompt[:count]
        self.index.removed(name, gone)
        self.model[name] = [block for block in self.model[name] if block not in gone]
        # Whoever removes a beginning before its ends leaves a hole.
        self.whole[name] = False

    @rule(name=st.sampled_from(BACKENDS))
    def cleared(self, name):
        self.index.cleared(name)
        self.model[name] = []
        self.whole[name] = True

    @rule(name=st.sampled_from(BACKENDS))
    def forget(self, name):
        self.index.forget(name)
        self.cleared(name)
        self.reporting.discard(name)

    @rule(name=st.sampled_from(BACKENDS))
    def reports(self, name):
        self.index.reports(name)
        self.cleared(name)
        self.reporting.add(name)

    @rule(prompt=prompts)
    def match(self, prompt):
        found = self.index.match(prompt)
        for name in BACKENDS:
            depth = 0
            while depth < len(prompt) and prompt[depth] in self.model[name]:
                depth += 1
            if self.whole[name]:
                assert found.get(name, 0) == depth
            else:
                assert (name in found) == (depth > 0)
                assert depth <= found.get(name, 0) <= len(prompt)

    @invariant()
    def both_maps_say_the_same(self):
        held = {name: list(blocks) for name, blocks in self.index._held.items() if blocks}
        assert held == {name: blocks for name, blocks in self.model.items() if blocks}
        holders: dict[int, set[str]] = {}
        for name, blocks in held.items():
            for block in blocks:
                holders.setdefault(block, set()).add(name)
        assert self.index._holders == holders
        for name in BACKENDS:
            assert self.index.count(name) == len(self.model[name]) <= CAPACITY

    @invariant()
    def what_is_held_is_held_from_the_beginning(self):
        for name in BACKENDS:
            if self.whole[name]:
                held = set(self.model[name])
                # The tree's root is 1; a block without its last digit is the one before it.
                assert all(block // 10 in held | {1} for block in held)


TestHeld = Held.TestCase
TestHeld.settings = settings(max_examples=60, stateful_step_count=25)
