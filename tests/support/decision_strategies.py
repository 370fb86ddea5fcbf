"""Backends, requests and terms for property tests of the decision core.

Each is a plain one with a few changes: what hinders is rare then, and a failure shrinks to the
changes that matter. Names and sizes are few, so that they collide, and near the limits.
"""

from __future__ import annotations

from math import inf

from hypothesis import strategies as st

from services.router.core.policy import Algorithm, Objective, OverflowRules
from services.router.core.prefix import PrefixIndex
from services.router.core.values import (
    Backend,
    Coefficients,
    Health,
    Load,
    Pool,
    Prices,
    Request,
    Residency,
    Resume,
    Terms,
    Tier,
)

NOW = 1000.0
NAMES = "abcdef"
_ONLY_TOKENS = frozenset({Resume.AFTER_TOKENS})

LOADS = [
    *({"running": n} for n in (1, 2, 3, 4, 5)),
    *({"waiting": n} for n in (1, 5)),
    *({"max_running": n} for n in (0, 1, 3)),
    *({"queued_prefill_tokens": n} for n in (100, 5_000, 100_000)),
    *({"step_time_ratio": m} for m in (0.1, 3.0)),
    *({"step_time": t} for t in (0.01, 0.1)),
    *({"prefill_budget": n} for n in (0, 1)),
    {"context_tokens": 20_000},
    {"prefill_tokens_per_step": 300.0},
    *({"kv_total_tokens": 1000, "kv_used_tokens": n} for n in (0, 900, 1000, 1100)),
    {"kv_total_tokens": 100_000, "kv_used_tokens": 100},
    {"coefficients": Coefficients(5753e-6, 17.25e-6, 6.0e-6, 0.052e-6)},
    {"coefficients": Coefficients(0.05, 1e-4, 1e-3, 0.0)},
]
HEALTHY = [
    *({"in_flight": n} for n in (1, 4)),
    *({"sent_since": n, "sent_tokens_since": 700 * n} for n in (1, 3)),
    *({"ended_since": n} for n in (1, 3)),
    *({"ready_since": at} for at in (NOW - 1, NOW, NOW + 1)),
    *({"prices": {"m": Prices(n, 4 * n)}} for n in (0, 1_000, 1_000_000)),
    *({"mean_output": n} for n in (0.0, 5.0)),
    *({"ttft_p95": t} for t in (0.5, 3.0, 20.0)),
    {"resumes": {"m": frozenset()}},
    {"resumes": {"m": _ONLY_TOKENS}},
    {"round_trip": 0.05},
    {"ttft": 0.3},
    {"zone": "x"},
]
ILL = [
    *({"health": health} for health in Health),
    *({"models": frozenset(names)} for names in ("mn", "n")),
    *({"cooling_until": at} for at in (NOW, NOW + 1)),
    {"drained": True},
]
REQUESTS = [
    *({"ttft_slo": t} for t in (0.001, 0.05, 1.0, 60.0)),
    *({"tried": frozenset(names)} for names in ("a", "bc")),
    *({"waited": t} for t in (9.9, 50.0)),
    *({"max_output": n} for n in (1, 500)),
    *({"blocks": (1, 2, 3)[:n]} for n in (1, 3)),
    *({"max_cost": n} for n in (0, 1, 50, 10_000)),
    *({"budget": n} for n in (0, 1, 50, 10_000)),
    *({"resume": Resume.AFTER_TOKENS, "begun_in": tier} for tier in (None, *Tier)),
    {"resume": Resume.AFTER_TEXT, "begun_in": Tier.CLOUD},
    {"backend_id": "a"},
    {"affinity": "k"},
    {"cloud_allowed": False},
]
TERMS = [
    *({"objective": Objective(ttft=t)} for t in (0.0, 0.2, inf)),
    *({"objective": Objective(ttft=t, tpot=0.008)} for t in (1.0, inf)),
    {"overflow": OverflowRules(enabled=False)},
    {"overflow": OverflowRules(leave=4.0)},
    {"slow_start": 10.0},
    {"continue_in_cloud": False},
    {"weights": {"a": 0.0, "x": 3.0}},
]


@st.composite
def _changed(draw, make, changes, most=3, **drawn):
    values = {name: draw(strategy) for name, strategy in drawn.items()}
    for change in draw(st.lists(st.sampled_from(changes), max_size=most)):
        values.update(change)
    return make(**values)


def _plain_backend(load, **values):
    able = {"m": frozenset(Resume)}
    plain = {"health": Health.READY, "models": frozenset("m"), "resumes": able}
    return Backend(load=Load(**{"max_running": 4, "prefill_budget": 512, **load}), **plain | values)


loads = _changed(dict, LOADS)
healthy_backends = _changed(
    _plain_backend,
    HEALTHY,
    id=st.sampled_from(NAMES),
    tier=st.sampled_from(Tier),
    load=loads,
)
backends = _changed(
    _plain_backend,
    HEALTHY + ILL,
    id=st.sampled_from(NAMES),
    tier=st.sampled_from(Tier),
    load=loads,
)
requests = _changed(
    Request,
    REQUESTS,
    most=2,
    model=st.just("m"),
    prompt_tokens=st.sampled_from([1, 2, 64, 500, 5_000]),
    residency=st.sampled_from(Residency),
    overflowing=st.booleans(),
)
terms = _changed(
    Terms,
    TERMS,
    most=2,
    local=st.just("m"),
    cloud=st.just("m"),
    algorithm=st.sampled_from(Algorithm),
)


def pools(of=backends, least=0):
    """Up to five of them, of different names."""
    return st.lists(of, min_size=least, max_size=5, unique_by=lambda backend: backend.id)


@st.composite
def prefixes(draw):
    """An index in which some backends hold some of the blocks 1, 2, 3."""
    index = PrefixIndex()
    for name, depth in draw(
        st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 3)), max_size=3)
    ):
        index.sent(name, (1, 2, 3)[:depth])
    return index


def snapshot(backends, index=None, turn=0) -> Pool:
    """A pool of these."""
    return Pool(tuple(backends), index, turn)
