"""The auth service's rules: names, scopes, lifetimes, key rotation and the login throttle."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.auth.core import clients, rotation
from services.auth.core.claims import AFTERLIFE, MAX_TOKEN_LIFE, TokenClaims, claims_for
from services.auth.core.rotation import RotationPolicy
from services.auth.core.throttle import LoginThrottle

POLICY = RotationPolicy(period=86_400, publish_ahead=900)


@dataclass(frozen=True)
class Key:
    kid: str
    active_at: float


def claims(life: int) -> TokenClaims:
    return claims_for(
        issuer="https://i",
        audience="a",
        client_id="orders",
        tenant="shop",
        scopes=["relay", "generate", "relay"],
        token_id="t1",
        now=1000.9,
        life=life,
    )


def test_claims_hold_what_rfc_9068_requires_with_scopes_once_and_sorted():
    assert claims(300).as_json() == {
        "iss": "https://i",
        "aud": "a",
        "sub": "orders",
        "client_id": "orders",
        "tenant": "shop",
        "scope": "generate relay",
        "iat": 1000,
        "exp": 1300,
        "jti": "t1",
    }


def test_no_token_outlives_ten_minutes():
    assert claims(86_400).expires_at == 1000 + MAX_TOKEN_LIFE


@pytest.mark.parametrize("name", ["abc", "a-1", "0" * 63, "---"])
def test_good_names_have_no_problem(name):
    assert clients.name_problems("f", name) == []


@pytest.mark.parametrize("name", ["", "ab", "a" * 64, "Abc", "a_b", "abc\n", "äbc", "a.b", "a b"])
def test_bad_names_have_one_problem(name):
    assert len(clients.name_problems("f", name)) == 1


def test_each_bad_scope_is_named_by_its_place():
    fields = [p.field for p in clients.scope_problems("scopes", ["admin", "root", "admin"])]
    assert fields == ["scopes[1]", "scopes[2]"]


def test_a_huge_scope_list_is_one_problem():
    assert len(clients.scope_problems("scopes", ["x"] * 100_000)) == 1


@pytest.mark.parametrize(
    ("nanoseconds", "good"),
    [
        (10 * 10**9, True),
        (600 * 10**9, True),
        (9 * 10**9, False),
        (601 * 10**9, False),
        (10 * 10**9 + 1, False),
        (0, False),
        (-(10**18), False),
    ],
)
def test_token_lives_are_whole_seconds_within_bounds(nanoseconds, good):
    assert (clients.life_problems("token_life", nanoseconds) == []) is good


def test_a_login_reports_all_of_its_problems():
    fields = [p.field for p in clients.login_problems("password", "X", "s" * 300)]
    assert fields == ["grant_type", "client_id", "client_secret"]


def test_the_first_key_signs_at_once():
    assert rotation.next_activation([], 50.0, POLICY) == 50.0


def test_the_next_key_is_made_ahead_of_the_end_of_the_period():
    keys = [Key("a", 0.0)]
    assert rotation.next_activation(keys, 86_400 - 901, POLICY) is None
    assert rotation.next_activation(keys, 86_400 - 900, POLICY) == 86_400


def test_a_service_that_slept_through_the_period_still_publishes_before_it_signs():
    keys = [Key("a", 0.0)]
    assert rotation.next_activation(keys, 1e6, POLICY) == 1e6 + 900


def test_no_second_key_is_made_while_one_waits():
    keys = [Key("a", 0.0), Key("b", 2000.0)]
    assert rotation.next_activation(keys, 1999.0, POLICY) is None
    assert rotation.pending(keys, 1999.0) == Key("b", 2000.0)
    assert rotation.pending(keys, 2000.0) is None


def test_the_signer_changes_when_its_successor_becomes_active():
    keys = [Key("b", 100.0), Key("a", 0.0)]
    assert rotation.signer(keys, 99.9) == Key("a", 0.0)
    assert rotation.signer(keys, 100.0) == Key("b", 100.0)
    assert rotation.signer(keys, -1.0) == Key("a", 0.0), "a clock that is late signs all the same"
    assert rotation.signer([], 0.0) is None


@given(st.floats(min_value=0, max_value=40 * 86_400), st.floats(min_value=1, max_value=3600))
def test_every_live_token_is_always_covered_by_a_published_key(start, step):
    """Follows one service through rotations: no token may outlive the key that signed it."""
    now, made = start, 0
    keys: list[Key] = []
    tokens: list[tuple[str, float]] = []
    for _ in range(200):
        now += step * 50
        keys = [key for key in keys if key not in rotation.dead(keys, now)]
        activation = rotation.next_activation(keys, now, POLICY)
        if activation is not None:
            keys.append(Key(f"k{made}", activation))
            assert made == 0 or activation >= now + POLICY.publish_ahead
            made += 1
        signing = rotation.signer(keys, now)
        assert signing is not None
        tokens.append((signing.kid, now + MAX_TOKEN_LIFE + AFTERLIFE))
        tokens = [token for token in tokens if token[1] > now]
        assert {kid for kid, _ in tokens} <= {key.kid for key in keys}
        assert len(keys) <= 3


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_failures_beyond_the_burst_wait_and_time_brings_attempts_back():
    clock = Clock()
    throttle = LoginThrottle(rate=0.5, burst=2, clock=clock)
    assert [throttle.attempt("a") for _ in range(3)] == [0.0, 0.0, 2.0]
    clock.now = 1.0
    assert throttle.attempt("a") == 1.0
    clock.now = 2.0
    assert throttle.attempt("a") == 0.0


def test_successes_cost_nothing_and_other_clients_are_not_slowed():
    throttle = LoginThrottle(rate=1, burst=1, clock=Clock())
    for _ in range(100):
        assert throttle.attempt("good") == 0.0
        throttle.give_back("good")
    throttle.attempt("bad")
    assert throttle.attempt("bad") > 0
    assert throttle.attempt("good") == 0.0


def test_the_throttle_forgets_the_longest_unused_instead_of_growing():
    throttle = LoginThrottle(rate=1, burst=1, clock=Clock(), capacity=2)
    for name in "abc":
        throttle.attempt(name)
    assert throttle.attempt("c") > 0
    assert throttle.attempt("a") == 0.0
