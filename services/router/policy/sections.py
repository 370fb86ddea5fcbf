"""Which key of a document is which field of a Policy, in both directions.

`to_policy` takes a document that satisfies the schema; `to_document` writes a policy out in full.
Both are driven by the same tables, so a key that is read is also written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any, TypeVar

from services.chassis import units
from services.router.core.policy import (
    AdmissionRules,
    Algorithm,
    Budget,
    ClassRules,
    ModelRules,
    Policy,
    PriorityClass,
    TenantRules,
    Variant,
)

T = TypeVar("T")
Data = dict[str, Any]

VERSION = 1
EVERYBODY = "*"


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a value is read and written."""

    read: Callable[[Any], Any]
    write: Callable[[Any], Any]


def _write_number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _write_budget(budget: Budget) -> Data:
    return {
        "usd": units.write_usd(budget.microusd),
        "period": units.write_seconds(budget.period),
    }


def _read_budget(written: Data) -> Budget:
    amount = written["microusd"] if "microusd" in written else units.microusd(written["usd"])
    if "period" in written:
        return Budget(amount, units.seconds(written["period"]))
    return Budget(amount)


def _read_limit(written: Any) -> float:
    return inf if written is None else units.seconds(written)


def _write_limit(seconds: float) -> str | float | None:
    return None if seconds == inf else units.write_seconds(seconds)


def _or_none(kind: _Kind) -> _Kind:
    return _Kind(
        lambda written: None if written is None else kind.read(written),
        lambda value: None if value is None else kind.write(value),
    )


_FLAG = _Kind(bool, bool)
_COUNT = _Kind(int, int)
_NUMBER = _Kind(float, _write_number)
_TEXT = _Kind(str, str)
_SECONDS = _Kind(units.seconds, units.write_seconds)
_LIMIT = _Kind(_read_limit, _write_limit)
_BYTES = _Kind(units.size, units.write_size)
_KINDS = _Kind(frozenset, sorted)
_BUDGET = _Kind(_read_budget, _write_budget)

_OBJECTIVES = {"ttft": _SECONDS, "tpot": _LIMIT}
_AFFINITY = {"enabled": _FLAG, "blocks_per_backend": _COUNT}
_BREAKER = {
    "consecutive": _COUNT,
    "failure_share": _NUMBER,
    "minimum_requests": _COUNT,
    "window": _SECONDS,
    "silence": _SECONDS,
    "rest": _SECONDS,
    "longest_rest": _SECONDS,
}
_RETRY = {"ratio": _NUMBER, "per_second": _NUMBER, "attempts": _COUNT}
_HEDGE = {"enabled": _FLAG, "share": _NUMBER, "after": _NUMBER, "soonest": _SECONDS}
_OVERFLOW = {
    "enabled": _FLAG,
    "ttft_margin": _NUMBER,
    "tpot_margin": _NUMBER,
    "leave": _NUMBER,
    "hold": _SECONDS,
}
_CLASS = {"floor": _NUMBER, "promote_after": _SECONDS}
_LINE = {"max_waiting": _COUNT, "max_wait": _SECONDS}
_MODEL = {"local": _TEXT, "cloud": _TEXT, "continue_in_cloud": _FLAG, "cache": _FLAG}
_TENANT = {
    "cloud": _FLAG,
    "cloud_budget": _or_none(_BUDGET),
    "cache": _FLAG,
    "mask": _or_none(_KINDS),
}
_CACHE = {"enabled": _FLAG, "ttl": _SECONDS}

Table = Mapping[str, _Kind]


def _read(table: Table, written: Data, base: T) -> T:
    """`base` with the fields that `written` names; a key is called as its field."""
    given = {key: kind.read(written[key]) for key, kind in table.items() if key in written}
    return replace(base, **given)  # type: ignore[type-var]


def _write(table: Table, value: object) -> Data:
    return {key: kind.write(getattr(value, key)) for key, kind in table.items()}


def to_policy(document: Data, defaults: Policy) -> Policy:
    """The policy that a checked document describes; `defaults` is what it leaves out.

    Its version is that of the defaults.
    """

    def section(key: str, table: Table, base: T) -> T:
        return _read(table, document.get(key, {}), base)

    everybody = _read(_TENANT, document.get("tenants", {}).get(EVERYBODY, {}), TenantRules())
    policy = replace(
        defaults,
        algorithm=Algorithm(document.get("algorithm", defaults.algorithm.value)),
        objective=section("objectives", _OBJECTIVES, defaults.objective),
        affinity=section("affinity", _AFFINITY, defaults.affinity),
        breaker=section("breaker", _BREAKER, defaults.breaker),
        retry=section("retry", _RETRY, defaults.retry),
        hedge=section("hedge", _HEDGE, defaults.hedge),
        overflow=section("overflow", _OVERFLOW, defaults.overflow),
        admission=_admission(document.get("admission", {}), defaults.admission),
        cache=_cache(document.get("cache", {}), defaults),
        weights={k: _NUMBER.read(v) for k, v in document.get("weights", {}).items()},
        aliases={
            name: tuple(Variant(v["model"], _NUMBER.read(v.get("weight", 1))) for v in variants)
            for name, variants in document.get("aliases", {}).items()
        },
        tenants={
            name: _read(_TENANT, rules, everybody)
            for name, rules in document.get("tenants", {}).items()
        },
    )
    if "slow_start" in document:
        policy = replace(policy, slow_start=_SECONDS.read(document["slow_start"]))
    if "cloud" in document.get("budgets", {}):
        policy = replace(policy, cloud_budget=_BUDGET.read(document["budgets"]["cloud"]))
    if "masking" in document:
        policy = replace(policy, mask=_KINDS.read(document["masking"]))
    models = {n: _model(rules, policy) for n, rules in document.get("models", {}).items()}
    return replace(policy, models=models)


def _admission(written: Data, base: AdmissionRules) -> AdmissionRules:
    codel, classes = written.get("codel", {}), written.get("classes", {})
    rules = _read(_LINE, written, base)
    if "target" in codel:
        rules = replace(rules, codel_target=_SECONDS.read(codel["target"]))
    if "interval" in codel:
        rules = replace(rules, codel_interval=_SECONDS.read(codel["interval"]))
    of_each = {
        one: _read(_CLASS, classes.get(one.value, {}), base.classes.get(one, ClassRules()))
        for one in PriorityClass
    }
    return replace(rules, classes=of_each)


def _cache(written: Data, defaults: Policy) -> Any:
    rules = _read(_CACHE, written, defaults.cache)
    if "max_answer" in written:
        rules = replace(rules, max_answer_bytes=_BYTES.read(written["max_answer"]))
    return rules


def _model(written: Data, policy: Policy) -> ModelRules:
    rules = _read(_MODEL, written, ModelRules())
    if "objectives" in written:
        own = _read(_OBJECTIVES, written["objectives"], policy.objective)
        rules = replace(rules, objective=own)
    if "overflow" in written:
        rules = replace(rules, overflow=_read(_OVERFLOW, written["overflow"], policy.overflow))
    return rules


def to_document(policy: Policy) -> Data:
    """A policy as a document that says everything; the same for equal policies."""
    admission = policy.admission
    codel = {"interval": units.write_seconds(admission.codel_interval)}
    if admission.codel_target is not None:
        codel = {"target": units.write_seconds(admission.codel_target), **codel}
    document: Data = {
        "version": VERSION,
        "algorithm": policy.algorithm.value,
        "objectives": _write(_OBJECTIVES, policy.objective),
        "affinity": _write(_AFFINITY, policy.affinity),
        "slow_start": units.write_seconds(policy.slow_start),
        "breaker": _write(_BREAKER, policy.breaker),
        "retry": _write(_RETRY, policy.retry),
        "hedge": _write(_HEDGE, policy.hedge),
        "overflow": _write(_OVERFLOW, policy.overflow),
        "admission": {
            **_write(_LINE, admission),
            "codel": codel,
            "classes": {
                one.value: _write(_CLASS, admission.classes.get(one, ClassRules()))
                for one in PriorityClass
            },
        },
        "weights": {key: _write_number(weight) for key, weight in policy.weights.items()},
        "models": {name: _model_document(rules) for name, rules in policy.models.items()},
        "aliases": {
            name: [{"model": v.model, "weight": _write_number(v.weight)} for v in variants]
            for name, variants in policy.aliases.items()
        },
        "tenants": {name: _write(_TENANT, rules) for name, rules in policy.tenants.items()},
        "budgets": {}
        if policy.cloud_budget is None
        else {"cloud": _write_budget(policy.cloud_budget)},
        "masking": sorted(policy.mask),
        "cache": {
            **_write(_CACHE, policy.cache),
            "max_answer": units.write_size(policy.cache.max_answer_bytes),
        },
    }
    return {key: value for key, value in document.items() if value != {}}


def _model_document(rules: ModelRules) -> Data:
    written = {key: value for key, value in _write_model(rules).items() if value is not None}
    if rules.objective is not None:
        written["objectives"] = _write(_OBJECTIVES, rules.objective)
    if rules.overflow is not None:
        written["overflow"] = _write(_OVERFLOW, rules.overflow)
    return written


def _write_model(rules: ModelRules) -> Data:
    return {key: getattr(rules, key) for key in _MODEL}
