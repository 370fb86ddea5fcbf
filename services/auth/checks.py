"""Problems of requests that concern models, networks, roles, quotas and tenants. Pure.

What a client may be called, its scopes and its token's life are core/clients.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.auth.core.clients import Problem, name_problems
from services.auth.rule_records import Quota
from services.chassis.model_patterns import MAX_PATTERNS, is_pattern
from services.chassis.peer_address import networks_of
from services.chassis.quotas.rules import MAX_RULES

MAX_ROLES = 16
MAX_NETWORKS = 16
LONGEST_PERIOD = 31 * 86_400
LARGEST_AMOUNT = 10**15
"""So that sums of microseconds and of micro-dollars stay exact where Redis counts in doubles."""

MOST_QUOTA_TEXT = 1800
"""Bytes of rules in a token, of whose 4 KiB they take 2400 in base64url."""

SHORTEST_KEY_LIFE = 60
LONGEST_KEY_LIFE = 3650 * 86_400
EACH = "*"

_NETWORK_CHARACTERS = 64


def model_problems(field: str, patterns: Sequence[str]) -> list[Problem]:
    """Problems of a list of model patterns."""
    rule = "must be a model's name, or its beginning followed by *"
    return _each(field, patterns, MAX_PATTERNS, lambda text: "" if is_pattern(text) else rule)


def network_problems(field: str, networks: Sequence[str]) -> list[Problem]:
    """Problems of a list of networks."""

    def problem(text: str) -> str:
        if len(text) > _NETWORK_CHARACTERS:
            return "is too long for a network"
        try:
            networks_of([text])
        except ValueError:
            return "must be a network such as 10.0.0.0/8, with no bits beyond its prefix"
        return ""

    return _each(field, networks, MAX_NETWORKS, problem)


def role_problems(field: str, roles: Sequence[str], known: object) -> list[Problem]:
    """Problems of a list of roles; `known` contains the names that exist."""

    def problem(name: str) -> str:
        return "" if name in known else "is no role; ListRoles names them"  # type: ignore[operator]

    return _each(field, roles, MAX_ROLES, problem)


def quota_problems(quota: Quota, nanoseconds: int) -> list[Problem]:
    """Problems of a quota whose period is given as on the wire."""
    problems: list[Problem] = []
    if quota.tenant != EACH:
        problems += name_problems("quota.tenant", quota.tenant)
    if quota.client_id not in ("", EACH):
        problems += name_problems("quota.client_id", quota.client_id)
        if quota.tenant == EACH:
            problems.append(Problem("quota.tenant", "must be the tenant of the client"))
    if quota.model:
        found = model_problems("quota.model", [quota.model])
        problems += [Problem("quota.model", problem.description) for problem in found]
    if not 1 <= quota.amount <= LARGEST_AMOUNT:
        problems.append(Problem("quota.limit", f"must be from 1 to {LARGEST_AMOUNT}"))
    if not 1 <= quota.burst <= LARGEST_AMOUNT:
        problems.append(Problem("quota.burst", f"must be from 1 to {LARGEST_AMOUNT}, or 0"))
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    if fraction or not 1 <= seconds <= LONGEST_PERIOD:
        rule = f"must be whole seconds from 1 to {LONGEST_PERIOD}"
        problems.append(Problem("quota.period", rule))
    return problems


def too_many_quotas(quotas: Sequence[Quota], added: Quota) -> list[Problem]:
    """A problem when some client's token would carry more rules than it may, or longer ones: with a
    quota for every tenant, not even an administrator could log in to take it back."""
    others = [quota for quota in quotas if quota.quota_id != added.quota_id]
    problems: list[Problem] = []
    # Of every client that some quota names, and of one that none does.
    held = [
        [added, *(quota for quota in others if _holds_for(quota, tenant, client))]
        for tenant, client in {(quota.tenant, quota.client_id) for quota in [*others, added]}
        if _holds_for(added, tenant, client)
    ]
    if max(map(len, held)) > MAX_RULES:
        problems.append(Problem("quota", f"makes more than {MAX_RULES} quotas for one client"))
    if max(sum(map(_text_size, one)) for one in held) > MOST_QUOTA_TEXT:
        rule = "makes the quotas of one client too long for a token; shorten their models"
        problems.append(Problem("quota", rule))
    return problems


def _holds_for(quota: Quota, tenant: str, client: str) -> bool:
    """Whether it concerns that client, or with "*" or nothing as a name, whoever else there is."""
    return quota.tenant in (tenant, EACH) and quota.client_id in (client, EACH, "")


def _text_size(quota: Quota) -> int:
    """Bytes of its rule in a token's claims, quoted and with a comma."""
    rule = f"client {quota.unit} {quota.amount} {quota.period} {quota.burst} {quota.model}"
    return len(rule) + 3


def key_life_problems(field: str, nanoseconds: int) -> list[Problem]:
    """Problems of an API key's life."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    if fraction or not SHORTEST_KEY_LIFE <= seconds <= LONGEST_KEY_LIFE:
        rule = f"must be whole seconds from {SHORTEST_KEY_LIFE} to {LONGEST_KEY_LIFE}"
        return [Problem(field, rule)]
    return []


def _each(
    field: str, items: Sequence[str], most: int, problem: Callable[[str], str]
) -> list[Problem]:
    if len(items) > most:
        return [Problem(field, f"must have at most {most} items")]
    found = [
        Problem(f"{field}[{i}]", text) for i, item in enumerate(items) if (text := problem(item))
    ]
    found += [
        Problem(f"{field}[{i}]", "is named twice")
        for i, item in enumerate(items)
        if item in items[:i]
    ]
    return found
