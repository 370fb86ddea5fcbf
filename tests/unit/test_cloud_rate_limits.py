"""What providers' headers say is left: every spelling, and nothing that breaks on garbage."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cloud_proxy.rate_limits import LimitKind, RateLimit, read_limits

NOW = 1_767_225_600.0  # Thu, 01 Jan 2026 00:00:00 GMT


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("1s", 1.0), ("6m0s", 360.0), ("20ms", 0.02), ("1h2m3.5s", 3723.5), ("2m59.56s", 179.56),
        ("500us", 0.0005), ("1d", 86_400.0), ("0s", 0.0), ("12", 12.0), ("7.66", 7.66),
        ("2026-01-01T00:00:30Z", 30.0), ("2026-01-01T01:00:30+01:00", 30.0),
        ("2026-01-01T00:00:30", 30.0), ("Thu, 01 Jan 2026 00:00:30 GMT", 30.0),
        ("2025-12-31T23:59:00Z", 0.0), ("1767225645", 45.0), ("1767225645500", 45.5),
        ("99999h", 86_400.0),
    ],
)  # fmt: skip
def test_reset_in_every_spelling(reset, seconds):
    headers = {"x-ratelimit-remaining-tokens": "149984", "x-ratelimit-reset-tokens": reset}
    (limit,) = read_limits(headers, NOW)
    assert (limit.kind, limit.remaining) == (LimitKind.TOKENS, 149984)
    assert limit.resets_in == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    ("remaining", "reset", "kind"),
    [
        ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests", LimitKind.REQUESTS),
        ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens", LimitKind.TOKENS),
        ("anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset",
         LimitKind.REQUESTS),
        ("anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset",
         LimitKind.TOKENS),
        ("anthropic-ratelimit-input-tokens-remaining", "anthropic-ratelimit-input-tokens-reset",
         LimitKind.INPUT_TOKENS),
        ("anthropic-ratelimit-output-tokens-remaining", "anthropic-ratelimit-output-tokens-reset",
         LimitKind.OUTPUT_TOKENS),
        ("x-ratelimit-remaining", "x-ratelimit-reset", LimitKind.REQUESTS),
        ("ratelimit-remaining", "ratelimit-reset", LimitKind.REQUESTS),
    ],
)  # fmt: skip
def test_every_family_of_headers_is_read(remaining, reset, kind):
    assert read_limits({remaining: "3", reset: "5"}, NOW) == [RateLimit(kind, 3, 5.0)]


def test_several_limits_of_one_response_are_all_read():
    headers = {
        "x-ratelimit-remaining-requests": "9", "x-ratelimit-reset-requests": "8.64s",
        "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m0s",
    }  # fmt: skip
    assert read_limits(headers, NOW) == [
        RateLimit(LimitKind.REQUESTS, 9, 8.64), RateLimit(LimitKind.TOKENS, 0, 60.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("remaining", "reset"),
    [
        ("-1", "5"), ("", "5"), ("many", "5"), ("nan", "5"), ("1e9", "5"), ("\u0663", "5"),
        ("9" * 5000, "5"), ("3", ""), ("3", "soon"), ("3", "-5"), ("3", "5 s"), ("3", "1s2"),
        ("3", "nan"), ("3", "2026-13-01T00:00:00Z"), ("3", "0001-01-01T00:00:00+23:59x"),
        ("3", "9" * 400),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_passed_over(remaining, reset):
    good = {"ratelimit-remaining": "1", "ratelimit-reset": "2"}
    bad = {"x-ratelimit-remaining": remaining, "x-ratelimit-reset": reset}
    assert read_limits({**bad, **good}, NOW) == [RateLimit(LimitKind.REQUESTS, 1, 2.0)]


def test_a_limit_without_its_reset_is_no_limit():
    assert read_limits({"x-ratelimit-remaining-requests": "0"}, NOW) == []
    assert read_limits({"content-type": "application/json"}, NOW) == []


_NAMES = st.sampled_from(
    ["x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens", "x-ratelimit-remaining",
     "x-ratelimit-reset", "anthropic-ratelimit-requests-remaining",
     "anthropic-ratelimit-requests-reset"]
)  # fmt: skip
_VALUES = st.one_of(
    st.text(max_size=80),
    st.text("0123456789hmsd.:-+TZ ,JanFriGMT", max_size=40),
    st.integers().map(str),
    st.floats().map(str),
    st.datetimes().map(lambda at: at.isoformat()),
    st.datetimes().map(lambda at: at.isoformat() + "+00:00"),
)


@given(st.dictionaries(_NAMES, _VALUES), st.floats(0, 1e11))
def test_nothing_is_raised_and_limits_make_sense_whatever_the_headers(headers, now):
    for limit in read_limits(headers, now):
        assert limit.remaining >= 0
        assert math.isfinite(limit.resets_in)
        assert 0 <= limit.resets_in <= 86_400
