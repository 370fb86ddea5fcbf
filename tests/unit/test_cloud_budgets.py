"""The cloud proxy's budgets: read exactly, refused with every fault, kept in all accounts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.budgets.leases import Lease, LeaseSource, ShareOfBudget
from services.chassis.errors import Fault, Work
from services.chassis.settings import SettingsError
from services.cloud_proxy.answer import FailureKind, ProviderFailure
from services.cloud_proxy.budget_rules import Budget, BudgetRules, read_budgets
from services.cloud_proxy.budgets import Budgets, Lack
from services.cloud_proxy.configuration import BadConfiguration
from services.cloud_proxy.settings import Settings
from services.cloud_proxy.spending import Money, cost_at_most, may_be_billed
from tests.support.cloud import ask
from tests.support.provider import route, routes_file
from tests.support.waiting import BOUND_S

DAY = 86_400.0
PROVIDERS = {"openai", "deepseek", "simulator"}
RULES = BudgetRules(
    everything=Budget(1000),
    providers={"openai": Budget(500)},
    tenants={"shop": Budget(300), "search": None},
    default_tenant=Budget(100, 3600.0),
)


class Clock:
    """The seconds since the epoch, as a test sets them."""

    def __init__(self) -> None:
        self.now = 10 * DAY + 100.0

    def __call__(self) -> float:
        return self.now


class Silent:
    """A source that does not answer."""

    async def take(self, account: str, budget: object, want: int) -> Lease | None:
        return None

    async def give_back(self, account: str, budget: object, amount: int, end: float) -> None:
        return None


@asynccontextmanager
async def budgets(
    rules: BudgetRules, clock: Clock | None = None, source: LeaseSource | None = None
) -> AsyncIterator[Budgets]:
    clock = clock or Clock()
    found = Budgets(rules, source or ShareOfBudget(1, clock), clock, slices=1, patience=BOUND_S)
    supplying = asyncio.create_task(found.keep_supplied())
    yield found
    supplying.cancel()
    await asyncio.wait((supplying,))


# The file


def read(tmp_path: Path, text: str) -> BudgetRules:
    path = tmp_path / "budgets.yaml"
    path.write_text(text)
    return read_budgets(path, PROVIDERS)


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(BadConfiguration) as caught:
        read(tmp_path, text)
    return caught.value.problems


def test_a_file_says_what_may_be_spent(tmp_path):
    found = read(
        tmp_path,
        """
        all: {usd: 500, period: 30d}
        providers: {openai: {microusd: 7, period: 1h}, deepseek: {usd: "12.50"}}
        tenants: {shop: {usd: 12.50, period: 90}, search: null}
        default_tenant: {usd: 0}
        """,
    )
    assert found == BudgetRules(
        everything=Budget(500_000_000, 30 * DAY),
        providers={"openai": Budget(7, 3600.0), "deepseek": Budget(12_500_000, DAY)},
        tenants={"shop": Budget(12_500_000, 90.0), "search": None},
        default_tenant=Budget(0, DAY),
    )


@pytest.mark.parametrize(
    ("usd", "microusd"),
    [
        ("0.000001", 1),
        ("0.1", 100_000),
        ("0.29", 290_000),
        # Doubles would make 123456789.12345679 and 999999999.9999990 of these.
        ("123456789.123457", 123_456_789_123_457),
        ("999999999.999999", 999_999_999_999_999),
        ("1_000.5", 1_000_500_000),
    ],
)
def test_amounts_are_read_to_the_last_digit(tmp_path, usd, microusd):
    assert read(tmp_path, f"all: {{usd: {usd}}}").everything == Budget(microusd)


def test_accounts_have_the_budgets_that_the_rules_name():
    found = {a: RULES.budget_of(a) for a in ("all", "provider:openai", "provider:deepseek")}
    assert list(found.values()) == [Budget(1000), Budget(500), None]
    assert RULES.budget_of("tenant:shop") == Budget(300)
    assert RULES.budget_of("tenant:search") is None, "named, and without a limit of its own"
    assert RULES.budget_of("tenant:other") == RULES.budget_of("tenant:") == Budget(100, 3600.0)
    assert RULES.budget_of("tenant:all") == Budget(100, 3600.0), "a tenant of that name"
    assert RULES.named_accounts() == ("all", "provider:openai", "tenant:shop")


def test_every_fault_of_a_file_is_told_with_its_path(tmp_path):
    found = "\n".join(
        problems(
            tmp_path,
            """
            all: {usd: 1, microusd: 1}
            every: {usd: 1}
            providers: {openai: {usd: -1}, deepseek: {period: 1d}}
            tenants: {shop: {usd: "1,50"}, 7: {usd: 1}, search: 5}
            default_tenant: {usd: 1, period: soon}
            """,
        )
    )
    paths = ("document", "all", "providers.openai.usd", "providers.deepseek", "tenants")
    for path in (*paths, "tenants.shop.usd", "tenants.search", "default_tenant.period"):
        assert f"budgets.yaml: {path}: " in found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("all: {usd: 0.0000001}", "budgets.yaml: all.usd: must be a whole number of millionths"),
        ("all: {usd: 1, period: 400d}", "budgets.yaml: all.period: must be from 1s to 366d"),
        ("all: {usd: 1, period: 0.5s}", "budgets.yaml: all.period: must be from 1s to 366d"),
        ("providers: {opnai: {usd: 1}}", "budgets.yaml: providers.opnai: is none of deepseek, "),
        ("all: {usd: .inf}", "budgets.yaml: is not valid YAML in line 1"),
        ("all: {usd: .nan}", "budgets.yaml: is not valid YAML in line 1"),
        ("all: {usd: true}", "budgets.yaml: all.usd: "),
        ("all: {microusd: 1.0}", "budgets.yaml: all.microusd: "),
        ("all: {usd: 1}\nall: {usd: 2}", "budgets.yaml: has a key twice in what begins in line 1"),
        ("", "budgets.yaml: document: "),
        ("{}", "budgets.yaml: document: "),
    ],
)
def test_what_would_not_be_kept_as_written_is_refused(tmp_path, text, problem):
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith(problem)


def test_a_bad_budgets_file_stops_the_start_with_what_else_is_bad(tmp_path):
    path = tmp_path / "budgets.yaml"
    path.write_text("all: {usd: -1}")
    with pytest.raises(SettingsError) as caught:
        Settings(models_file=tmp_path / "none.yaml", budgets_file=path)
    told = str(caught.value)
    assert "budgets.yaml: all.usd" in told
    assert "none.yaml" in told
    path.unlink()
    with pytest.raises(SettingsError, match=r"budgets\.yaml: cannot be read"):
        Settings(models_file=routes_file(tmp_path, "http://127.0.0.1:1"), budgets_file=path)


# In force


async def test_a_reservation_is_made_in_every_account_or_in_none():
    async with budgets(RULES) as money:
        reservation = await money.reserve_soon("shop", "openai", 200)
        assert reservation is not None
        assert money.available("shop", "openai") == 100
        assert money.available("search", "openai") == 300
        assert money.available("search", "deepseek") == 800
        assert await money.reserve_soon("shop", "openai", 101) is None
        assert money.available("search", "openai") == 300, "the others are as they were"
        money.settle(reservation, 50)
        assert money.available("shop", "openai") == 250
        assert money.available("search", "openai") == 450


async def test_each_unnamed_tenant_has_a_budget_of_its_own():
    async with budgets(RULES) as money:
        assert await money.reserve_soon("a", "deepseek", 100) is not None
        assert await money.reserve_soon("a", "deepseek", 1) is None
        assert await money.reserve_soon("b", "deepseek", 100) is not None


async def test_without_rules_everything_passes():
    async with budgets(BudgetRules()) as money:
        assert not money.limits("shop", "openai")
        assert money.available("shop", "openai") is None
        reservation = money.reserve("shop", "openai", 10**15)
        assert reservation is not None
        money.settle(reservation, 1)


async def test_which_account_refuses_and_until_when_is_told():
    clock = Clock()
    async with budgets(RULES, clock) as money:
        spent = await money.reserve_soon("a", "openai", 100)
        assert spent is not None
        money.settle(spent, 100)
        assert await money.reserve_soon("a", "openai", 1) is None
        (shortage,) = money.shortages("a", "openai", 1)
        assert (shortage.account, shortage.lack) == ("tenant:a", Lack.USED_UP)
        assert shortage.period_end == 10 * DAY + 3600.0
        assert shortage.retry_after == 3500.0
        assert [s.account for s in money.shortages("shop", "openai", 301)] == ["tenant:shop"]
        assert len(money.shortages("shop", "openai", 10**6)) == 3


async def test_the_new_period_has_a_new_budget():
    clock = Clock()
    async with budgets(BudgetRules(everything=Budget(100, 3600.0)), clock) as money:
        first = await money.reserve_soon("a", "openai", 100)
        assert first is not None
        assert await money.reserve_soon("a", "openai", 1) is None
        clock.now += 3500.0
        assert await money.reserve_soon("a", "openai", 100) is not None
        # What began in the old period is charged there.
        money.settle(first, 100)
        assert money.shortages("a", "openai", 0) == []


async def test_what_only_runs_or_only_goes_unanswered_is_worth_asking_again_soon():
    async with budgets(BudgetRules(everything=Budget(100))) as money:
        assert await money.reserve_soon("a", "openai", 60) is not None
        assert await money.reserve_soon("a", "openai", 60) is None
        (shortage,) = money.shortages("a", "openai", 60)
        assert (shortage.lack, shortage.retry_after) == (Lack.SET_ASIDE, 1.0)
        (shortage,) = money.shortages("a", "openai", 101)
        assert (shortage.lack, shortage.retry_after) == (Lack.TOO_SMALL, DAY - 100.0)
    async with budgets(BudgetRules(everything=Budget(100)), source=Silent()) as money:
        assert await money.reserve_soon("a", "openai", 60) is None
        (shortage,) = money.shortages("a", "openai", 60)
        assert (shortage.lack, shortage.retry_after) == (Lack.UNANSWERED, 1.0)


async def test_what_no_budget_can_ever_cover_ties_up_no_lease():
    clock = Clock()
    rules = BudgetRules(everything=Budget(5000))
    money = Budgets(rules, ShareOfBudget(1, clock), clock, slices=50, patience=BOUND_S)
    supplying = asyncio.create_task(money.keep_supplied())
    assert await money.reserve_soon("a", "openai", 10) is not None
    assert await money.reserve_soon("a", "openai", 5001) is None
    assert money.reserve("a", "openai", 5001) is None
    assert (money.available("a", "openai") or 0) <= 100
    supplying.cancel()
    await asyncio.wait((supplying,))


# One request's


async def test_a_request_is_refused_with_what_lacks_and_when_to_come_again():
    clock = Clock()
    async with budgets(RULES, clock) as kept:
        money = Money(kept, "shop")
        await money.reserve("openai", 300)
        money.settle(300)
        with pytest.raises(Fault) as caught:
            await money.reserve("openai", 1)
        fault = caught.value
        assert fault.reason == errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED
        assert fault.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert fault.work is Work.NOT_DISPATCHED
        assert fault.retry_after == DAY - 100.0
        ends = datetime.fromtimestamp(11 * DAY, UTC)
        why = (
            "the cloud budget of tenant shop does not cover what this request may cost before "
            f"{ends:%Y-%m-%d %H:%M:%S} UTC"
        )
        assert fault.quota == (("cloud budget tenant:shop", why),)
        assert fault.message == why
        assert fault.metadata == {"accounts": "tenant:shop", "needed_microusd": "1"}


async def test_where_costs_are_unknown_a_budget_cannot_be_kept():
    async with budgets(BudgetRules(providers={"openai": Budget(500)})) as kept:
        money = Money(kept, "shop")
        assert money.is_limited("openai")
        with pytest.raises(Fault) as caught:
            await money.reserve("openai", None)
        assert caught.value.reason == errors_pb2.ERROR_REASON_UNSUPPORTED
        assert not money.is_limited("deepseek")
        await money.reserve("deepseek", None)
        money.settle(0)


async def test_money_ends_once_and_failed_attempts_are_charged_too():
    async with budgets(RULES) as kept:
        money = Money(kept, "shop")
        await money.reserve("openai", 200)
        money.owe(30)
        # The next provider is asked: the first one's accounts are charged what it may have cost.
        await money.reserve("deepseek", 100)
        assert kept.available("search", "openai") == 470
        money.owe(5)
        money.settle(20)
        money.settle(20)
        money.release()
        assert kept.available("shop", "deepseek") == 300 - 30 - 25
        assert kept.available("search", "openai") == 470
        assert kept.available("search", "deepseek") == 1000 - 30 - 25


async def test_what_was_released_costs_nothing():
    async with budgets(RULES) as kept:
        money = Money(kept, "shop")
        await money.reserve("openai", 200)
        money.release()
        money.settle(200)
        assert kept.available("shop", "openai") == 300


@pytest.mark.parametrize(
    ("kind", "status", "received", "billed"),
    [
        (FailureKind.UNREACHABLE, None, 0, False),
        (FailureKind.BUSY, 429, 0, False),
        (FailureKind.FAILED, 503, 0, False),
        (FailureKind.FAILED, None, 0, True),
        (FailureKind.TIMED_OUT, None, 0, True),
        (FailureKind.BROKEN, None, 10, True),
        (FailureKind.BUSY, None, 10, True),
        (FailureKind.REFUSED_REQUEST, 400, 0, False),
    ],
)
def test_a_failed_attempt_is_charged_if_it_may_be_billed(kind, status, received, billed):
    failure = ProviderFailure(kind, "why", http_status=status)
    assert may_be_billed(failure, received) is billed


def test_what_a_request_may_cost_is_known_with_prices_and_a_longest_answer(tmp_path):
    here = {"base_url": "http://127.0.0.1:1"}
    priced = route(tmp_path, "simulator", "sim-chat", **here)
    # 1 micro-USD a prompt token, 2 a token of output; "hello" and its framing are 11 at most.
    assert cost_at_most(ask(sampling=pb.Sampling(max_tokens=10, n=3)), priced) == 11 + 60
    assert cost_at_most(ask(), priced, max_tokens=10) == 11 + 20
    assert cost_at_most(ask(), priced) == 11 + 2 * 32_768
    assert cost_at_most(ask(), route(tmp_path, "simulator", "unknown", **here)) is None
    prices = {"input": 1, "cached_input": 1, "output": 1, "source": "x", "as_of": "2026-01-01"}
    endless = route(tmp_path, "simulator", "unknown", prices=prices, **here)
    assert cost_at_most(ask(), endless) is None
    assert (
        cost_at_most(
            ask(), route(tmp_path, "simulator", "unknown", prices={**prices, "output": 0}, **here)
        )
        == 1
    )
