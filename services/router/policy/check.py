"""Checks a policy file without a router: `python -m services.router --check-policy FILE`."""

from __future__ import annotations

from pathlib import Path

from services.router.core.policy import Policy
from services.router.policy.document import read
from services.router.policy.policy_file import PolicyFile
from services.router.policy.problems import BadPolicy


def check_file(path: Path) -> list[str]:
    """Every fault of a policy file; what it leaves out is taken from the built-in defaults."""
    held = PolicyFile(path).look()
    assert held is not None, "nothing was seen before"
    if held.objection:
        return [held.objection]
    try:
        read(held.content, Policy())
    except BadPolicy as bad:
        return [str(problem) for problem in bad.problems]
    return []
