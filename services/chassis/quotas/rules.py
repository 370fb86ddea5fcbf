"""What a quota allows whom, as a token carries it. Pure: nothing is counted here.

The auth service writes the rules that hold for a client into its tokens, so every service that
verifies a token knows them without asking anybody.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from services.chassis.model_patterns import covers

MAX_RULES = 24
"""So many rules a token may carry: with all else it stays below 4 KiB."""

_FIELDS = 6


class Unit(StrEnum):
    """What a quota counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    COST = "cost"  # millionths of a US dollar spent in the cloud


class Subject(StrEnum):
    """Whose use is counted together."""

    TENANT = "tenant"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class QuotaRule:
    """`limit` of a unit in each `period` of whole seconds, at most `burst` of it at once.

    `model` is a model pattern whose models count together; empty means all models.
    """

    subject: Subject
    unit: Unit
    limit: int
    period: int
    burst: int
    model: str = ""

    def __post_init__(self) -> None:
        if self.limit < 1 or self.period < 1 or self.burst < 1:
            raise ValueError("a quota's limit, period and burst are at least 1")

    def concerns(self, model: str) -> bool:
        """Whether a request for this model counts."""
        return not self.model or covers(self.model, model)

    def as_text(self) -> str:
        """As a token's claim holds it."""
        return f"{self.subject} {self.unit} {self.limit} {self.period} {self.burst} {self.model}"


def read_rule(text: str) -> QuotaRule:
    """Reads what `as_text` wrote. Raises ValueError for anything else."""
    parts = text.split(" ")
    if len(parts) != _FIELDS:
        raise ValueError("a quota rule has six fields")
    subject, unit, limit, period, burst, model = parts
    return QuotaRule(Subject(subject), Unit(unit), int(limit), int(period), int(burst), model)


def read_rules(texts: Iterable[str]) -> tuple[QuotaRule, ...]:
    """Reads a claim. Raises ValueError, also for more than MAX_RULES."""
    rules = tuple(read_rule(text) for text in texts)
    if len(rules) > MAX_RULES:
        raise ValueError("too many quota rules")
    return rules
