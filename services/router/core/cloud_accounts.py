"""Which accounts pay for the cloud, and what a policy lets each of them spend.

How an account is kept is the ledger's (chassis/budgets), which knows names only.
"""

from __future__ import annotations

from collections.abc import Callable

from services.router.core.policy import Budget, Policy

ALL = "all"
"""The account of all tenants together."""


def tenant_account(tenant: str) -> str:
    """The account of one tenant."""
    return f"tenant:{tenant}"


def accounts_of(tenant: str) -> tuple[str, str]:
    """The accounts that a tenant's request is paid from, each of it in full."""
    return ALL, tenant_account(tenant)


def budgets_of(policy: Policy) -> Callable[[str], Budget | None]:
    """Which budget an account has under a policy."""

    def budget_of(account: str) -> Budget | None:
        if account == ALL:
            return policy.cloud_budget
        return policy.tenant(account.removeprefix("tenant:")).cloud_budget

    return budget_of
