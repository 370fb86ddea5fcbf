"""The cloud's money in the router's shell: leases come and go, and no store's failure ends it."""

import asyncio

from services.chassis.budgets.leases import ShareOfBudget
from services.router.core.cloud_accounts import ALL, budgets_of, tenant_account
from services.router.core.policy import Budget, Policy, TenantRules
from services.router.spending import Spending, payer_of_tenant
from tests.support.waiting import until

SHOP = payer_of_tenant("shop")
POLICY = Policy(tenants={"shop": TenantRules(cloud_budget=Budget(1000))})


def now() -> float:
    return 1000.0


class Failing(ShareOfBudget):
    """A store that fails as nobody foresaw."""

    async def take(self, account, budget, want):
        raise TypeError("a bug in the store's client")

    async def give_back(self, account, budget, amount, period_end):
        raise TypeError("a bug in the store's client")


async def test_a_store_that_fails_leaves_the_router_without_money_but_alive():
    spending = Spending(lambda: POLICY, Failing(1, now), now)
    told = asyncio.Event()
    spending.supply.on_change = told.set
    supplying = asyncio.create_task(spending.keep_supplied())
    assert spending.available(SHOP) == 0
    await asyncio.wait_for(told.wait(), 60)
    assert not supplying.done()
    assert spending.available(SHOP) == 0
    supplying.cancel()
    await asyncio.wait([supplying])
    assert supplying.cancelled()


async def test_what_is_free_is_given_back_at_the_end_and_what_is_reserved_is_kept():
    shares = ShareOfBudget(1, now)
    spending = Spending(lambda: POLICY, shares, now)
    supplying = asyncio.create_task(spending.keep_supplied())
    assert spending.ask_for(SHOP, 300)

    async def there() -> bool:
        return (spending.available(SHOP) or 0) >= 300

    await until(there)
    reservation = spending.reserve(SHOP, 300)
    assert reservation is not None
    supplying.cancel()
    await asyncio.wait([supplying])
    assert shares._taken == {"tenant:shop": (0.0, 300)}


async def test_a_give_back_that_fails_does_not_hold_up_the_end():
    leases = ShareOfBudget(1, now)
    spending = Spending(lambda: POLICY, leases, now)
    supplying = asyncio.create_task(spending.keep_supplied())
    assert spending.ask_for(SHOP, 300)

    async def there() -> bool:
        return (spending.available(SHOP) or 0) >= 300

    await until(there)
    leases.give_back = Failing(1, now).give_back
    supplying.cancel()
    await asyncio.wait([supplying])
    assert supplying.cancelled()


def test_a_policy_says_which_budget_an_account_has():
    own, rest, everyone = Budget(1), Budget(2), Budget(3)
    policy = Policy(
        tenants={"acme": TenantRules(cloud_budget=own), "*": TenantRules(cloud_budget=rest)},
        cloud_budget=everyone,
    )
    budget_of = budgets_of(policy)
    assert budget_of(tenant_account("acme")) is own
    assert budget_of(tenant_account("other")) is rest
    assert budget_of(tenant_account("all")) is rest, "a tenant of that name is not everyone"
    assert budget_of(ALL) is everyone
    assert budgets_of(Policy())(tenant_account("acme")) is None
