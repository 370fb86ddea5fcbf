"""Rules of answers that must have a form, whichever engine makes them. Pure.

How a form is compiled, and whether it can be, is the engine's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.chassis.errors import Violation, invalid
from services.local_engine.engine import Constraint, ConstraintKind, SamplingSpec

_FIELDS: Mapping[ConstraintKind, str] = {
    ConstraintKind.JSON_OBJECT: "response_format.json_object",
    ConstraintKind.JSON_SCHEMA: "response_format.json_schema",
    ConstraintKind.REGEX: "response_format.regex",
    ConstraintKind.CHOICE: "response_format.choice.options",
    ConstraintKind.GRAMMAR: "response_format.grammar",
}


@dataclass(frozen=True, slots=True)
class FormLimits:
    """What judging one form may take: `seconds` of time, `memory` in bytes beyond the program's
    own; `processes` judge at once. `compact` leaves no white space in JSON. `kinds` are the forms
    that may be asked for."""

    seconds: float = 0.5
    processes: int = 2
    memory: int = 512 * 1024 * 1024
    compact: bool = False
    kinds: frozenset[str] = frozenset(kind.value for kind in ConstraintKind)


def field_of(constraint: Constraint) -> str:
    """The request's field that the form came in."""
    if constraint.origin != "response_format":
        return constraint.origin
    return _FIELDS.get(constraint.kind, constraint.origin)


def check_combination(spec: SamplingSpec) -> None:
    """Raises Fault INVALID_REQUEST for what cannot be had together with a form.

    An answer that is complete must end, whatever its length: a token after it fits no grammar.
    """
    if spec.constraint is None:
        return
    form = spec.constraint.origin
    why = f"cannot be combined with {form}: a complete answer must be able to end"
    found = []
    if spec.min_tokens:
        found.append(Violation("sampling.min_tokens", why))
    if spec.ignore_eos:
        found.append(Violation("sampling.ignore_eos", why))
    if found:
        raise invalid(found)
