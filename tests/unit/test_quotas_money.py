"""Quotas of money become accounts, of which one that is not known may spend nothing."""

from __future__ import annotations

import asyncio

from services.chassis.budgets.leases import ShareOfBudget
from services.chassis.principal import Principal
from services.chassis.quotas.money import (
    KnownQuotas,
    LeasesByKind,
    QuotaBudget,
    is_quota,
    money_quotas,
)
from services.chassis.quotas.rules import QuotaRule, Subject, Unit
from services.router.core.policy import Budget, Policy, TenantRules
from services.router.spending import Spending, payer_of
from tests.support.waiting import until

DAY = 86_400


def caller(*rules: QuotaRule) -> Principal:
    return Principal("web/1", "shop", frozenset(), 2e9, "t", quotas=rules)


def cost(subject: Subject, limit: int, model: str = "") -> QuotaRule:
    return QuotaRule(subject, Unit.COST, limit, DAY, limit, model)


def test_each_rule_about_money_that_concerns_the_model_is_an_account():
    rules = (
        cost(Subject.TENANT, 500),
        cost(Subject.CLIENT, 100, "river*"),
        cost(Subject.CLIENT, 50, "lake"),
        QuotaRule(Subject.TENANT, Unit.TOKENS, 1, 1, 1),
    )
    assert money_quotas(caller(*rules), "river-small") == (
        ("quota/tenant/shop/86400/", QuotaBudget(500, DAY)),
        ("quota/client/web%2F1/86400/river*", QuotaBudget(100, DAY)),
    )


def test_no_more_accounts_are_known_than_allowed_and_the_others_have_nothing():
    in_force = {"quota/a"}
    known = KnownQuotas(lambda account: account not in in_force, most=2)
    for name in "abc":
        known.learn(((f"quota/{name}", QuotaBudget(100, DAY)),))
    assert len(known) == 2
    assert [known.budget_of(f"quota/{name}").microusd for name in "abc"] == [100, 0, 100]
    in_force.add("quota/c")
    known.learn((("quota/d", QuotaBudget(100, DAY)),))
    assert known.budget_of("quota/d").microusd == 0
    known.learn((("quota/a", QuotaBudget(30, DAY)),))
    assert known.budget_of("quota/a").microusd == 30, "a rule that changed is followed"


async def test_quotas_are_leased_where_all_services_lease_them():
    def now() -> float:
        return 1000.0

    quotas, others = ShareOfBudget(1, now), ShareOfBudget(1, now)
    leases = LeasesByKind(quotas=quotas, others=others)
    await leases.take("quota/tenant/shop/1/", QuotaBudget(100, 60.0), 10)
    await leases.take("tenant:quota/", Budget(100, 60.0), 20)
    await leases.give_back("tenant:quota/", Budget(100, 60.0), 5, 1020.0)
    assert quotas._taken == {"quota/tenant/shop/1/": (960.0, 10)}
    assert others._taken == {"tenant:quota/": (960.0, 15)}


async def test_a_request_is_paid_from_its_tenants_budget_and_from_its_callers_quota():
    policy = Policy(tenants={"shop": TenantRules(cloud_budget=Budget(10_000))})
    spending = Spending(lambda: policy, ShareOfBudget(1, lambda: 1000.0), lambda: 1000.0)
    supplying = asyncio.create_task(spending.keep_supplied())
    payer = payer_of(caller(cost(Subject.CLIENT, 300)), "river")
    others = payer_of(caller(), "river")
    assert [is_quota(account) for account in payer.accounts] == [False, False, True]

    async def reserved() -> bool:
        spending.ask_for(payer, 300)
        reservation = spending.reserve(payer, 300)
        if reservation is not None:
            spending.settle(reservation, 300)
        return reservation is not None

    await until(reserved)
    assert spending.reserve(payer, 1) is None
    assert spending.available(payer) == 0

    async def others_have() -> bool:
        spending.ask_for(others, 300)
        return spending.reserve(others, 300) is not None

    await until(others_have)
    supplying.cancel()
    await asyncio.wait([supplying])


async def test_a_quota_limits_also_where_the_policy_does_not():
    spending = Spending(Policy, ShareOfBudget(1, lambda: 1000.0), lambda: 1000.0)
    assert spending.available(payer_of(caller(), "river")) is None
    assert spending.available(payer_of(caller(cost(Subject.TENANT, 300)), "river")) == 0
