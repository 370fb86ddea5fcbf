"""Keys take turns, and each is left alone for as long as its own reason lasts."""

import contextlib

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.chassis.settings import Secret
from services.cloud_proxy.keys import AccountKey, Blocked, Key, KeyPool
from services.cloud_proxy.rate_limits import LimitKind, RateLimit


class Scene:
    """A pool and its clock. Keys are "secret" or "quota secret"."""

    def __init__(self, *keys: str, per_model: bool = False) -> None:
        self.now = 1000.0
        self.pool = KeyPool(configured(*keys), lambda: self.now, per_model=per_model)

    def pick(self, model: str = "m", tokens: int = 10) -> Key:
        key = self.pool.pick(model, tokens)
        assert key is not None
        return key

    def picked(self, count: int = 4, model: str = "m", tokens: int = 10) -> set[str]:
        """The secrets that come up."""
        keys = [self.pool.pick(model, tokens) for _ in range(count)]
        return {key.secret.reveal() for key in keys if key is not None and key.secret}

    def by(self, secret: str) -> Key:
        """The key with this secret, whatever its state."""
        (found,) = [k for k in self.pool._keys if k.secret == Secret(secret)]
        return found

    def fail(self, secret: str, times: int) -> None:
        for _ in range(times):
            self.pool.failed(self.by(secret))


def configured(*keys: str) -> list[AccountKey]:
    words = [key.split() for key in keys]
    return [AccountKey(Secret(w[-1]), w[0] if len(w) == 2 else "") for w in words]


def left(remaining: int, resets_in: float, kind: LimitKind = LimitKind.TOKENS) -> list[RateLimit]:
    return [RateLimit(kind, remaining, resets_in)]


def test_keys_take_turns():
    s = Scene("a", "b", "c")
    assert [s.pick().number for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_pool_without_keys_sends_no_credential():
    s = Scene()
    assert s.pick().secret is None
    s.pool.limited(s.pick(), "m", 5)
    assert s.pool.pick("m", 1) is None


def test_limited_keys_cool_and_come_back_when_the_provider_said():
    s = Scene("sk-one", "b")
    first = s.pick()
    s.pool.limited(first, "m", 5)
    assert s.picked() == {"b"}
    s.pool.limited(s.by("b"), "m", 30)
    assert s.pool.pick("m", 10) is None
    assert s.pool.wait("m", 10) == pytest.approx(5)
    assert s.pool.blocked_by("m", 10) is Blocked.LIMITED
    s.now += 5
    assert s.picked() == {"sk-one"}
    s.pool.limited(first, "m", 1e9)
    s.now += 60
    assert s.picked() == {"sk-one", "b"}
    assert "sk-one" not in repr(first)
    assert "sk-one" not in repr(s.pool.states())


def test_a_shorter_limit_does_not_shorten_a_longer_one():
    s = Scene("a")
    s.pool.limited(s.by("a"), "m", 20)
    s.pool.limited(s.by("a"), "m", 1)
    assert s.pool.wait("m", 10) == pytest.approx(20)


def test_siblings_of_a_quota_cool_and_run_out_of_credit_together():
    s = Scene("q a", "q b", "c")
    s.pool.limited(s.by("a"), "m", 5)
    assert s.picked() == {"c"}
    s.now += 5
    s.pool.out_of_credit(s.by("b"))
    assert s.picked() == {"c"}
    s.now += 30
    assert s.picked() == {"a", "b", "c"}


def test_a_limit_on_one_model_leaves_others_alone_where_limits_are_by_model():
    for per_model, others in ((True, {"a"}), (False, set())):
        s = Scene("a", per_model=per_model)
        s.pool.limited(s.by("a"), "m", 5)
        s.pool.observe(s.by("a"), "m", left(0, 5))
        assert s.picked(model="m") == set()
        assert s.picked(model="other") == others


def test_a_rejected_key_rests_alone_and_longer_each_time():
    s = Scene("q a", "q b")
    for seconds in (30, 60, 120, 240, 480, 600, 600):
        s.pool.rejected(s.by("a"))
        # Requests that were under way are refused, too; that is no further time.
        s.pool.rejected(s.by("a"))
        s.now += seconds - 1
        assert s.picked() == {"b"}
        s.now += 1
        assert s.picked() == {"a", "b"}
    s.pool.good(s.by("a"))
    s.pool.rejected(s.by("a"))
    s.now += 30
    assert s.picked() == {"a", "b"}


def test_why_no_key_is_used_is_told_by_the_key_that_is_best_off():
    s = Scene("a", "b")
    s.pool.rejected(s.by("a"))
    s.pool.rejected(s.by("b"))
    assert s.pool.blocked_by("m", 1) is Blocked.REJECTED
    s = Scene("a", "b")
    s.pool.rejected(s.by("a"))
    s.pool.out_of_credit(s.by("b"))
    assert s.pool.blocked_by("m", 1) is Blocked.NO_CREDIT
    s = Scene("a", "b")
    s.pool.rejected(s.by("a"))
    s.fail("b", 5)
    assert s.pool.blocked_by("m", 1) is Blocked.FAILING


def test_a_key_that_fails_in_a_row_is_left_alone_longer_each_time_and_probed():
    s = Scene("a")
    s.fail("a", 4)
    s.pool.good(s.by("a"))
    s.fail("a", 4)
    assert s.picked() == {"a"}
    s.fail("a", 1)
    for seconds in (5, 10, 20, 40, 60, 60):
        assert s.pool.pick("m", 1) is None
        assert s.pool.wait("m", 1) == pytest.approx(seconds)
        s.now += seconds
        with s.pool.using(s.pick(), "m", 1):
            assert s.pool.pick("m", 1) is None, "one probe at a time"
            s.fail("a", 1)
    s.now += 60
    with s.pool.using(s.pick(), "m", 1):
        s.pool.good(s.by("a"))
    assert s.picked() == {"a"}
    s.fail("a", 5)
    assert s.pool.wait("m", 1) == pytest.approx(5)


def test_a_probe_that_is_cancelled_gives_its_place_back():
    s = Scene("a")
    s.fail("a", 5)
    s.now += 5
    with contextlib.suppress(KeyboardInterrupt), s.pool.using(s.pick(), "m", 1):
        raise KeyboardInterrupt
    with s.pool.using(s.pick(), "m", 1):
        assert s.pool.states()[0].in_flight == 1
    assert s.pool.states()[0].in_flight == 0


def test_a_probe_that_streams_for_long_keeps_others_away_for_a_while_only():
    s = Scene("a")
    s.fail("a", 5)
    s.now += 5
    with s.pool.using(s.pick(), "m", 1):
        assert s.pool.wait("m", 1) == pytest.approx(5)
        s.now += 5
        with s.pool.using(s.pick(), "m", 1):
            assert s.pool.pick("m", 1) is None
        # The later probe is over, and the first one has had its time.
        assert s.pick()


def test_success_that_began_before_the_breaker_opened_does_not_close_it():
    s = Scene("a")
    s.fail("a", 5)
    s.pool.good(s.by("a"))
    assert s.pool.pick("m", 1) is None


def test_requests_that_the_known_rest_does_not_cover_wait_for_the_reset():
    s = Scene("a")
    s.pool.observe(s.by("a"), "m", left(100, 7))
    assert s.picked(tokens=100) == {"a"}
    assert s.picked(tokens=101) == set()
    assert s.pool.wait("m", 101) == pytest.approx(7)
    assert s.pool.blocked_by("m", 101) is Blocked.LIMITED
    with s.pool.using(s.pick(tokens=60), "m", 60):
        pass
    assert s.picked(tokens=41) == set()
    assert s.picked(tokens=40) == {"a"}
    s.pool.observe(s.by("a"), "m", left(90, 7))
    assert s.picked(tokens=90) == {"a"}
    s.now += 7
    assert s.picked(tokens=10**9) == {"a"}


def test_remaining_requests_count_down_with_what_is_sent():
    s = Scene("q a", "q b")
    s.pool.observe(s.by("a"), "m", left(2, 3600, LimitKind.REQUESTS))
    for _ in range(2):
        with s.pool.using(s.pick(), "m", 10):
            pass
    assert s.pool.pick("m", 10) is None
    # No header is believed for an hour.
    assert s.pool.wait("m", 10) == pytest.approx(60)


def test_limits_on_one_direction_bind_when_nothing_is_left():
    s = Scene("a")
    s.pool.observe(s.by("a"), "m", left(5, 9, LimitKind.OUTPUT_TOKENS))
    assert s.picked(tokens=1000) == {"a"}
    s.pool.observe(s.by("a"), "m", left(0, 9, LimitKind.INPUT_TOKENS))
    assert s.picked(tokens=1) == set()


def test_replacing_keys_keeps_what_is_known_of_those_that_stay():
    s = Scene("a", "q b", "q c")
    s.pool.rejected(s.by("a"))
    s.pool.limited(s.by("b"), "m", 50)
    s.pool.replace(configured("a", "q c", "q d", "e"))
    assert s.picked() == {"e"}
    assert [state.number for state in s.pool.states()] == [0, 2, 3, 4]
    s.now += 50
    assert s.picked() == {"a", "c", "d", "e"}


def test_an_attempt_under_way_ends_well_with_a_key_that_was_replaced():
    s = Scene("a")
    key = s.pick()
    with s.pool.using(key, "m", 1):
        s.pool.replace(configured("b"))
        s.pool.observe(key, "m", left(0, 50))
        s.pool.rejected(key)
    assert s.picked() == {"b"}
    assert [state.blocked for state in s.pool.states()] == [None]


def test_a_key_that_is_there_twice_has_one_turn():
    s = Scene("a", "a", "b")
    assert [s.pick().number for _ in range(4)] == [0, 1, 0, 1]


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
