"""What people type for times, scopes and money, and how values are shown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.cli.auth import options, times, views
from anabranch.v1 import auth_pb2 as pb
from anabranch.vocabulary import AuditDetail, Cipher

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("12h", 43_200),
        ("30d", 2_592_000),
        ("1h30m", 5400),
        (" 1H ", 3600),
    ],
)
def test_durations_are_whole_seconds(text: str, seconds: int) -> None:
    assert times.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "m", "0s", "-5m", "1.5h", "5 m", "5w", "30m1h", "٥m", "999999999d", "5m5m"]
)
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        times.parse_duration(text)


@given(st.integers(1, 10**9))
def test_a_shown_duration_reads_back(seconds: int) -> None:
    assert times.parse_duration(times.show_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(90, "90s"), (60, "1m"), (600, "10m"), (5400, "1h30m"), (0.5, "0.5s")]
)
def test_durations_are_shown_as_they_were_typed(seconds: float, text: str) -> None:
    assert times.show_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (59, "59s"), (61, "1m"), (7500, "2h"), (86_400 * 3.5, "3d")],
)
def test_ages_are_shown_in_their_largest_unit(seconds: float, text: str) -> None:
    assert times.show_age(seconds) == text


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1h", NOW - timedelta(hours=1)),
        ("30d", NOW - timedelta(days=30)),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T08:00:00Z", datetime(2026, 1, 31, 8, tzinfo=UTC)),
        ("2026-01-31 08:00", datetime(2026, 1, 31, 8, tzinfo=UTC)),
        (
            "2026-01-31T08:00:00+08:00",
            datetime(2026, 1, 31, 8, tzinfo=timezone(timedelta(hours=8))),
        ),
    ],
)
def test_times_are_iso_or_how_long_ago(text: str, moment: datetime) -> None:
    found = times.parse_time(text, lambda: NOW)
    assert found == moment
    assert found.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-13-01", "1h ago", "99999d", "0001-01-01T00:00:00+14:00"]
)
def test_what_is_no_time_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="ISO 8601"):
        times.parse_time(text, lambda: NOW)


@pytest.mark.parametrize(
    ("text", "microusd"),
    [("1", 10**6), ("12.50", 12_500_000), ("$0.000001", 1), ("1e3", 10**9), ("25.10", 25_100_000)],
)
def test_money_is_exact(text: str, microusd: int) -> None:
    assert options.MicrodollarType().convert(text, None, None) == microusd


@pytest.mark.parametrize(
    "text", ["", "x", "0", "-1", "0.0000001", "nan", "inf", "1e30", "1e999999"]
)
def test_what_is_no_amount_of_money_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        options.MicrodollarType().convert(text, None, None)


def test_a_scope_that_looks_like_a_slip_is_refused_with_the_one_meant() -> None:
    with pytest.raises(click.BadParameter, match="Did you mean 'generate'"):
        options.SCOPE.convert("genrate", None, None)
    # A newer service may have more scopes: it is the one to say.
    assert options.SCOPE.convert("quarterly", None, None) == "quarterly"


def test_the_scopes_of_the_contract_are_completed() -> None:
    command = click.Command("x", params=[])
    context = click.Context(command)
    found = options.SCOPE.shell_complete(context, click.Option(["--scope"]), "a")
    assert [item.value for item in found] == ["audit", "admin"]


def test_a_tenant_that_nobody_set_is_shown_with_the_defaults() -> None:
    shown = views.tenant(pb.Tenant(name="finance"))
    assert shown["audit"] == "metadata"
    assert shown["cipher"] == "aes-256-gcm"


def test_choices_are_shown_as_they_are_typed() -> None:
    assert [views.typed(member) for member in AuditDetail][1:] == list(AuditDetail.names())
    assert [views.typed(member) for member in Cipher][1:] == list(Cipher.names())


def test_a_choice_of_a_newer_service_is_shown_and_breaks_nothing() -> None:
    newer = pb.Tenant(name="finance", cipher=99)  # type: ignore[arg-type]
    assert views.tenant(newer)["cipher"] == "unknown-99"
