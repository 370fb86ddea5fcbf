"""What one part of a policy means for another: faults that no schema can express.

Pure: a policy in, faults out. A rule that could blame the rest for a part that is faulty itself
names the parts that it looks at, and is left out then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from services.router.core.policy import Policy
from services.router.policy.problems import KeyPath

_LONGEST_LOOP = 8
_MOST_WAYS = 64

Found = Iterator[tuple[KeyPath, str]]


def faults(policy: Policy, faulty: Collection[KeyPath] = ()) -> Found:
    """Every fault as a path and what must be there; `faulty` are paths known to be wrong."""
    for rule, parts in _RULES:
        if not any(_touch(path, part) for path in faulty for part in parts):
            yield from rule(policy)


def _touch(one: KeyPath, other: KeyPath) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _weights(policy: Policy) -> Found:
    if policy.weights and not any(policy.weights.values()):
        yield ("weights",), "are all 0, so that nobody would get anything; raise one"


def _floors(policy: Policy) -> Found:
    floors = {one.value: rules.floor for one, rules in policy.admission.classes.items()}
    # Shares are written with a few decimals: what is beyond 1 by rounding alone is meant to be 1.
    if sum(floors.values()) > 1 + 1e-9:
        each = ", ".join(f"{name} {floor:g}" for name, floor in floors.items())
        yield (
            ("admission", "classes"),
            f"keep more than the whole line: the floors ({each}) must add up to 1 at most",
        )


def _rests(policy: Policy) -> Found:
    if policy.breaker.longest_rest < policy.breaker.rest:
        yield (
            ("breaker", "longest_rest"),
            f"must be at least rest, which is {policy.breaker.rest:g}s",
        )


def _aliases(policy: Policy) -> Found:
    for name, variants in policy.aliases.items():
        path: KeyPath = ("aliases", name)
        if name in policy.models:
            yield path, "is the name of a model too; rename one of them"
        if not any(variant.weight for variant in variants):
            yield path, "has only weights of 0; raise one"
        seen: set[str] = set()
        for number, variant in enumerate(variants):
            where = (*path, number, "model")
            if variant.model in policy.aliases:
                yield where, _not_a_model(policy, name, variant.model)
            elif variant.model in seen:
                yield where, "is in this alias twice; add the weights up"
            seen.add(variant.model)


def _not_a_model(policy: Policy, name: str, model: str) -> str:
    """Why an alias must not stand for `model`, itself an alias."""
    loop = _loop(policy, name, model)
    if loop:
        return f"makes a loop ({' → '.join(loop)}); name a model"
    return "is an alias itself; name the models that it stands for"


def _loop(policy: Policy, start: str, first: str) -> list[str]:
    """The shortest way from an alias by way of `first` back to it; empty when there is none, or
    none that a person would have made."""
    ways = [[start, first]]
    for way in ways:
        if way[-1] == start:
            return way
        if len(way) <= _LONGEST_LOOP and len(ways) < _MOST_WAYS:
            ways += [[*way, variant.model] for variant in policy.aliases.get(way[-1], ())]
    return []


_Rule = Callable[[Policy], Found]
_RULES: tuple[tuple[_Rule, tuple[KeyPath, ...]], ...] = (
    (_weights, (("weights",),)),
    (_floors, (("admission", "classes"),)),
    (_rests, (("breaker", "rest"), ("breaker", "longest_rest"))),
    (_aliases, ()),
)
