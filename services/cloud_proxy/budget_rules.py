"""The budgets file: what may be spent at each provider, by each tenant, and in all.

Read once, at start, and refused whole with the path of every fault. How budgets are kept is
budgets.py's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import orjson

from services.chassis import units
from services.cloud_proxy.configuration import BadConfiguration, faults, read_yaml

_SCHEMA = Path(__file__).parent / "budgets.schema.json"
_SHORTEST_S, _LONGEST_S = 1.0, 366 * 86_400.0

ALL = "all"
"""The account of everything together."""


@dataclass(frozen=True, slots=True)
class Budget:
    """So many millionths of a US dollar for each period of so many seconds, aligned to the
    epoch."""

    microusd: int
    period: float = 86_400.0


def provider_account(name: str) -> str:
    """The account of what is spent at one provider."""
    return f"provider:{name}"


def tenant_account(name: str) -> str:
    """The account of what is spent by one tenant."""
    return f"tenant:{name}"


def accounts_of(tenant: str, provider: str) -> tuple[str, str, str]:
    """The accounts that a request is paid from, each of it in full."""
    return ALL, provider_account(provider), tenant_account(tenant)


@dataclass(frozen=True, slots=True)
class BudgetRules:
    """Budgets; None is no limit. `default_tenant` is for each tenant that is not named."""

    everything: Budget | None = None
    providers: Mapping[str, Budget] = field(default_factory=dict)
    tenants: Mapping[str, Budget | None] = field(default_factory=dict)
    default_tenant: Budget | None = None

    def budget_of(self, account: str) -> Budget | None:
        """What an account may spend in all."""
        kind, _, name = account.partition(":")
        if kind == "provider":
            return self.providers.get(name)
        if kind == "tenant":
            return self.tenants.get(name, self.default_tenant)
        return self.everything

    def named_accounts(self) -> tuple[str, ...]:
        """The accounts that the file names and limits: so many, whoever calls."""
        named = (ALL, *map(provider_account, self.providers), *map(tenant_account, self.tenants))
        return tuple(account for account in named if self.budget_of(account) is not None)


UNLIMITED = BudgetRules()


def read_budgets(path: Path, providers: Collection[str]) -> BudgetRules:
    """The budgets of a file. Raises BadConfiguration with all faults at once, among them names
    that are none of the `providers`: what is misspelt would limit nothing."""
    return load_budgets(read_yaml(path, exact=True), path.name, providers)


def load_budgets(document: Any, where: str, providers: Collection[str]) -> BudgetRules:
    """The budgets of a document whose fractions are Decimals. Raises as `read_budgets` does."""
    problems = faults(document, _schema(), where)
    if problems:
        raise BadConfiguration(problems)

    def budget(written: Mapping[str, Any], at: str) -> Budget:
        try:
            return _budget(written)
        except _BadAmount as bad:
            problems.append(f"{where}: {at}.{bad}")
            return Budget(0)

    def one(key: str) -> Budget | None:
        return budget(document[key], key) if key in document else None

    named = document.get("providers", {})
    known = ", ".join(sorted(providers))
    problems += [f"{where}: providers.{n}: is none of {known}" for n in named if n not in providers]
    rules = BudgetRules(
        everything=one("all"),
        providers={name: budget(b, f"providers.{name}") for name, b in named.items()},
        tenants={
            name: None if written is None else budget(written, f"tenants.{name}")
            for name, written in document.get("tenants", {}).items()
        },
        default_tenant=one("default_tenant"),
    )
    if problems:
        raise BadConfiguration(problems)
    return rules


class _BadAmount(ValueError):
    """What the schema cannot say: the text goes on after the path of the budget."""


def _budget(written: Mapping[str, Any]) -> Budget:
    try:
        amount = units.microusd(written["usd"]) if "usd" in written else int(written["microusd"])
    except units.TooFine as fine:
        raise _BadAmount(f"usd: {fine}") from None
    if "period" not in written:
        return Budget(amount)
    period = units.seconds(written["period"])
    if not _SHORTEST_S <= period <= _LONGEST_S:
        raise _BadAmount("period: must be from 1s to 366d")
    return Budget(amount, period)


@cache
def _schema() -> dict[str, Any]:
    return cast(dict[str, Any], orjson.loads(_SCHEMA.read_bytes()))
