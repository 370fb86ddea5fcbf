"""Predicts how soon and how fast a backend would answer. Pure arithmetic on its load report.

A step of an engine takes `b0 + b1·prefill + b2·decode + b3·context`, times the speed ratio `m` that
the engine measures itself (never learnt here from answers that came late: that feeds back). From it
follow the score and the expected times of docs/adr/0006.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from services.router.core.values import Backend, Coefficients, Load

H100_LLAMA_8B = Coefficients(5753e-6, 17.25e-6, 6.0e-6, 0.052e-6)
"""Published for Llama-3.1-8B on one H100; what is assumed of a backend that says nothing."""

QUEUE_SHARE = 0.022
"""What one more request costs the others, as a share of an empty step: 0.125 ms on that H100.

The laboratory's figures are alike from there to 0.5 ms, but for antagonists, where less is better:
that a backend has become slow tells more than how many requests it has.
"""

DEFAULT_PREFILL_BUDGET = 2048


class Outlook(NamedTuple):
    """What one state of a backend promises to any request: all but the request's own tokens.

    Of a request with `p` tokens that its cache does not hold, the score is
    `score + per_token · p`, and the expected seconds to the first token are
    `rest + step · ⌈(queued + p) / budget⌉ + per_token · p`. `wait` is how long one more request is
    expected to wait for a slot, 0 where one is free, and `turnover` how long until the next request
    ends; `tpot` is the time per output token with it. `kv_free` is the room in tokens, infinite
    where unknown.
    """

    present: int
    free_slot: bool
    wait: float
    turnover: float
    score: float
    per_token: float
    rest: float
    step: float
    queued: int
    budget: int
    tpot: float
    kv_free: float


def outlook(backend: Backend) -> Outlook:
    """The outlook of a backend; computed once for each of its states."""
    known = backend.outlook
    if known is None:
        known = backend.outlook = _outlook(backend)
    return known


def _outlook(backend: Backend) -> Outlook:
    load = backend.load
    m = load.step_time_ratio
    n = _present(backend)
    queued = load.queued_prefill_tokens + backend.sent_tokens_since
    base, prefill, decode, context = load.coefficients or _assumed(load)
    held = context * load.context_tokens
    step = m * (base + decode * n + held)
    tpot = m * (base + decode * (n + 1) + held + prefill * load.prefill_tokens_per_step)
    per_token = m * prefill
    limit = load.max_running
    excess = n + 1 - limit if 0 < limit <= n else 0
    kv_free = inf
    if load.kv_total_tokens:
        kv_free = float(load.kv_total_tokens - load.kv_used_tokens - queued)
    # What an empty backend's cache still holds makes room for whoever comes.
    full = n > 0 and kv_free <= 0
    # Slots come free one after the other, as answers of mean length end. Where only slots are
    # short all of them are in use, even if the report is from before those who take them.
    at_once = limit if excess and not full else max(load.running, 1)
    turnover = backend.mean_output * tpot / at_once
    wait = max(excess, 1) * turnover if excess or full else 0.0
    residual = 0.5 * tpot if n else 0.0
    return Outlook(
        n,
        not excess and not full,
        wait,
        turnover,
        per_token * queued + m * QUEUE_SHARE * base * (n + 1),
        per_token,
        backend.round_trip + residual + per_token * queued + wait,
        step,
        queued,
        max((load.prefill_budget or DEFAULT_PREFILL_BUDGET) - n, 1),
        tpot,
        kv_free if n else inf,
    )


def _assumed(load: Load) -> Coefficients:
    """Those of the known card, scaled so that they give the step time that the backend reports."""
    known = H100_LLAMA_8B
    if not load.step_time:
        return known
    modelled = (
        known.base
        + known.prefill * load.prefill_tokens_per_step
        + known.decode * load.running
        + known.context * load.context_tokens
    )
    scale = load.step_time / (modelled * load.step_time_ratio)
    return Coefficients(*[scale * value for value in known])


def _present(backend: Backend) -> int:
    """Requests that the backend has: as it reported, corrected by what it cannot know of yet."""
    load = backend.load
    reported = load.running + load.waiting + backend.sent_since - backend.ended_since
    return max(reported, backend.in_flight)


def score(ahead: Outlook, tokens: int) -> float:
    """Relative cost of adding a request with so many uncached tokens, in seconds; lower is better.

    The time that its prefill and those before it take, and what it costs those that decode:
    `m·[b1·(Q + p) + κ·(n + 1)]`.
    """
    return ahead.score + ahead.per_token * tokens


def time_to_first_token(ahead: Outlook, tokens: int) -> float:
    """Expected seconds from dispatch to the first token, for so many uncached tokens."""
    steps = -(-(ahead.queued + tokens) // ahead.budget)
    return ahead.rest + ahead.step * steps + ahead.per_token * tokens


def longest_step(ahead: Outlook) -> float:
    """Expected seconds of the next step, filled up with the prompts that wait there."""
    return ahead.step + ahead.per_token * min(ahead.queued, ahead.budget)
