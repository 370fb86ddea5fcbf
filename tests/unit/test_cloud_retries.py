"""Waiting and estimates: the small decisions of the cloud proxy."""

import pytest

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy import estimates
from services.cloud_proxy.answer import FailureKind, ProviderFailure, ProviderUsage
from services.cloud_proxy.profile_files import Prices
from services.cloud_proxy.retries import (
    RetryBudget,
    RetryPolicy,
    retry_after,
    should_retry,
    wait_before,
)

POLICY = RetryPolicy(attempts=3, base=0.2, longest_wait=2.0)
NOW = 1_767_225_600.0  # Thu, 01 Jan 2026 00:00:00 GMT


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"x-ms-retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "9", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 2026 00:00:30 GMT"}, 30.0),
        ({"retry-after": "Wed, 31 Dec 2025 00:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e400"}, None),
        ({"retry-after": "999999999"}, 86_400.0),
    ],
)
def test_retry_after_in_every_spelling(headers, seconds):
    assert retry_after(headers, NOW) == seconds


def test_should_retry():
    assert should_retry({"x-should-retry": "true"}) is True
    assert should_retry({"x-should-retry": "False"}) is False
    assert should_retry({}) is None


def wait(kind, attempt=1, key_wait=0.0, **more):
    return wait_before(ProviderFailure(kind, "", **more), attempt, POLICY, key_wait, lambda: 0.5)


@pytest.mark.parametrize(
    "kind",
    [
        FailureKind.REFUSED_KEY, FailureKind.NO_CREDIT, FailureKind.REFUSED_REQUEST,
        FailureKind.TOO_LONG, FailureKind.MISCONFIGURED, FailureKind.BROKEN, FailureKind.TIMED_OUT,
    ],
)  # fmt: skip
def test_never_repeated(kind):
    assert wait(kind) is None
    if kind not in (FailureKind.BROKEN, FailureKind.TIMED_OUT):
        assert wait(kind, retry=True) is None


def test_backing_off_grows_with_jitter_and_ends_with_the_attempts():
    assert wait(FailureKind.FAILED, 1) == pytest.approx(0.15)
    assert wait(FailureKind.FAILED, 2) == pytest.approx(0.3)
    assert wait(FailureKind.FAILED, 3) is None
    assert wait(FailureKind.FAILED, 1, retry=False) is None


def test_provider_that_names_a_time_is_given_it_or_given_up():
    assert wait(FailureKind.FAILED, retry_after=1.0) == 1.0
    assert wait(FailureKind.FAILED, retry_after=3.0) is None
    assert wait(FailureKind.BUSY, key_wait=1.5, retry_after=1.5) == 1.5
    assert wait(FailureKind.BUSY, key_wait=30.0, retry_after=30.0) is None
    assert wait(FailureKind.BUSY, key_wait=0.0, retry_after=30.0) == 0.0


def test_budget_bounds_repeats_to_a_fifth():
    budget = RetryBudget()
    repeats = 0
    for _ in range(1000):
        budget.earn()
        repeats += budget.spend()
    assert 200 <= repeats <= 210


def test_cost_is_exact_and_rounded_up():
    prices = Prices(input=140_000, cached_input=2_800, output=280_000, source="", as_of="")
    assert estimates.cost_microusd(ProviderUsage(130, 128, 17, 9), prices) == 6
    assert estimates.cost_microusd(ProviderUsage(0, 0, 0, 0), prices) == 0
    million = ProviderUsage(1_000_000, 500_000, 1_000_000, 0)
    assert estimates.cost_microusd(million, prices) == 70_000 + 1_400 + 280_000


def test_affordable_tokens_shrink_with_prompt_and_choices():
    prices = Prices(input=1_000_000, cached_input=0, output=2_000_000, source="", as_of="")
    message = pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text="x" * 184)])
    request = pb.GenerateRequest(messages=[message])
    assert estimates.prompt_tokens(request) == 50
    assert estimates.prompt_tokens_at_most(request) == 100
    assert estimates.affordable_tokens(request, prices, 300) == 100
    request.sampling.n = 2
    assert estimates.affordable_tokens(request, prices, 300) == 50
    assert estimates.affordable_tokens(request, prices, 99) < 1
