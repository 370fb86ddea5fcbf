"""What a client may be called and granted. Every rule reports all its problems at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from services.auth.core.claims import MAX_TOKEN_LIFE, MIN_TOKEN_LIFE
from services.auth.core.roles import KNOWN_SCOPES

MAX_DISPLAY_NAME = 200
MAX_SECRET = 256
"""Characters. Ours are far shorter; a longer text is refused before it costs a hash."""

_NAME = re.compile(r"[a-z0-9-]{3,63}")
_NAME_RULE = "must be 3 to 63 lower-case letters, digits and hyphens"


class Problem(NamedTuple):
    """One fault of a request: the path of the field, and what it must be."""

    field: str
    description: str


def name_problems(field: str, value: str) -> list[Problem]:
    """Problems of a client id or a tenant."""
    if not value:
        return [Problem(field, "is required")]
    return [] if _NAME.fullmatch(value) else [Problem(field, _NAME_RULE)]


def display_name_problems(field: str, value: str) -> list[Problem]:
    problems = []
    if len(value) > MAX_DISPLAY_NAME:
        problems.append(Problem(field, f"must be at most {MAX_DISPLAY_NAME} characters"))
    if not value.isprintable():
        problems.append(Problem(field, "must not hold control characters"))
    return problems


def scope_problems(field: str, scopes: Sequence[str]) -> list[Problem]:
    """One problem for each scope that does not exist or is named twice.

    A list longer than all scopes together gets one problem, so that a huge one
    does not become a huge answer.
    """
    if len(scopes) > len(KNOWN_SCOPES):
        return [Problem(field, f"must name at most {len(KNOWN_SCOPES)} scopes")]
    known = ", ".join(sorted(KNOWN_SCOPES))
    problems = []
    for i, scope in enumerate(scopes):
        if scope not in KNOWN_SCOPES:
            problems.append(Problem(f"{field}[{i}]", f"must be one of {known}"))
        elif scope in scopes[:i]:
            problems.append(Problem(f"{field}[{i}]", "is named twice"))
    return problems


def life_problems(field: str, nanoseconds: int) -> list[Problem]:
    """Problems of a token life: whole seconds within the bounds of claims.py."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    if fraction or not MIN_TOKEN_LIFE <= seconds <= MAX_TOKEN_LIFE:
        rule = f"must be whole seconds from {MIN_TOKEN_LIFE} to {MAX_TOKEN_LIFE}"
        return [Problem(field, rule)]
    return []


def login_problems(grant_type: str, client_id: str, client_secret: str) -> list[Problem]:
    """Problems of a login that are visible without knowing any client."""
    problems = []
    if grant_type not in ("", "client_credentials"):
        problems.append(Problem("grant_type", "must be client_credentials or empty"))
    problems += name_problems("client_id", client_id)
    if not client_secret:
        problems.append(Problem("client_secret", "is required"))
    elif len(client_secret) > MAX_SECRET:
        problems.append(Problem("client_secret", f"must be at most {MAX_SECRET} characters"))
    return problems
