"""Whatever happens to keys, in any order: limits hold, nothing leaks, and waits are truthful."""

import contextlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.cloud_proxy.keys import Key
from tests.support.key_pool import Scene, configured, left

MODELS = st.sampled_from(["m", "n"])
INDEX = st.integers(0, 3)
TOKENS = st.sampled_from([0, 1, 50, 1000])


class Pools(RuleBasedStateMachine):
    """Whatever happens to the keys, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene("q a", "q b", "c", "d", per_model=True)
        self.pool = self.scene.pool
        self.open: list[tuple[Key, contextlib.ExitStack]] = []
        # By quota, or by number where it has none, and model.
        self.cooling: dict[tuple[str, str], float] = {}

    def key(self, index: int) -> Key:
        keys = self.pool._keys
        return keys[index % len(keys)]

    @staticmethod
    def quota(key: Key) -> str:
        return key.quota_name or str(key.number)

    @rule(model=MODELS, tokens=TOKENS)
    def begin(self, model: str, tokens: int) -> None:
        key = self.pool.pick(model, tokens)
        if key is None:
            assert self.pool.wait(model, tokens) > 0
            return
        assert self.pool.wait(model, tokens) == 0
        assert self.cooling.get((self.quota(key), model), 0) <= self.scene.now
        stack = contextlib.ExitStack()
        stack.enter_context(self.pool.using(key, model, tokens))
        self.open.append((key, stack))

    @precondition(lambda self: self.open)
    @rule(which=INDEX, how=st.sampled_from(["good", "failed", "rejected", "cancelled"]))
    def end(self, which: int, how: str) -> None:
        key, stack = self.open.pop(which % len(self.open))
        if how != "cancelled":
            getattr(self.pool, how)(key)
        stack.close()

    @rule(which=INDEX, model=MODELS, seconds=st.integers(0, 100))
    def limited(self, which: int, model: str, seconds: int) -> None:
        key = self.key(which)
        self.pool.limited(key, model, seconds)
        place = (self.quota(key), model)
        until = self.scene.now + min(seconds, 60)
        self.cooling[place] = max(self.cooling.get(place, 0), until)

    @rule(which=INDEX)
    def out_of_credit(self, which: int) -> None:
        self.pool.out_of_credit(self.key(which))

    @rule(which=INDEX, times=st.integers(1, 6))
    def fails(self, which: int, times: int) -> None:
        for _ in range(times):
            self.pool.failed(self.key(which))

    @rule(which=INDEX, model=MODELS, remaining=TOKENS, seconds=st.floats(0, 100))
    def observe(self, which: int, model: str, remaining: int, seconds: float) -> None:
        self.pool.observe(self.key(which), model, left(remaining, seconds))

    @rule(keys=st.sets(st.sampled_from(["q a", "q b", "c", "d", "e", "q f"]), min_size=1))
    def replace(self, keys: set[str]) -> None:
        self.pool.replace(configured(*sorted(keys)))
        # What nobody draws on any more is forgotten.
        quotas = {self.quota(key) for key in self.pool._keys}
        self.cooling = {at: until for at, until in self.cooling.items() if at[0] in quotas}

    @rule(seconds=st.floats(0.001, 700))
    def time_passes(self, seconds: float) -> None:
        self.scene.now += seconds

    @rule(model=MODELS, tokens=TOKENS)
    def after_the_wait_a_key_is_picked(self, model: str, tokens: int) -> None:
        wait = self.pool.wait(model, tokens)
        assert 0 <= wait <= 600
        self.scene.now += wait
        assert self.pool.pick(model, tokens) is not None

    @invariant()
    def in_flight_counts_are_those_of_open_attempts(self) -> None:
        for key, state in zip(self.pool._keys, self.pool.states(), strict=True):
            assert state.in_flight == sum(key is other for other, _ in self.open)

    @invariant()
    def siblings_cool_together(self) -> None:
        quotas = [key.quota for key in self.pool._keys if key.quota_name == "q"]
        assert all(quota is quotas[0] for quota in quotas)

    def teardown(self) -> None:
        for _, stack in self.open:
            stack.close()
        assert all(state.in_flight == 0 for state in self.pool.states())


Pools.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPools = Pools.TestCase
