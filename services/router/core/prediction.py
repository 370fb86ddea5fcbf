"""Predicts how soon a backend would answer. Pure arithmetic on its load report.

A first form of the predicted-latency score: time grows with the prompt tokens
queued ahead and with the requests already there, scaled by how slow the backend
measures itself to be. Its constants are those of one H100 with an 8B model
where the backend reports no step time of its own.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from services.router.core.values import Backend

DEFAULT_STEP_S = 0.006
PREFILL_S_PER_TOKEN = 17.25e-6
QUEUE_S_PER_REQUEST = 0.0005
DEFAULT_PREFILL_BUDGET = 2048
TYPICAL_OUTPUT_TOKENS = 200


class Outlook(NamedTuple):
    """What one state of a backend promises to any request: all but the request's own tokens.

    Of a request of `p` tokens the score is `score + score_per_token · p`, the expected seconds to
    the first token `rest + step · ⌈(queued + p) / budget⌉`, and those of each further one `step`.
    """

    present: int
    free_slot: bool
    score: float
    score_per_token: float
    rest: float
    step: float
    queued: int
    budget: int


def outlook(backend: Backend) -> Outlook:
    """The outlook of a backend; computed once for each of its states."""
    known = backend.outlook
    if known is None:
        known = backend.outlook = _outlook(backend)
    return known


def _outlook(backend: Backend) -> Outlook:
    load = backend.load
    present = _present(backend)
    slow = load.step_time_ratio
    step = load.step_time or DEFAULT_STEP_S
    queued = load.queued_prefill_tokens + backend.sent_tokens_since
    limit = load.max_running
    excess = present + 1 - limit if 0 < limit <= present else 0
    waiting = excess * TYPICAL_OUTPUT_TOKENS * step / max(load.running, 1)
    roomy = not load.kv_total_tokens or load.kv_used_tokens < load.kv_total_tokens
    return Outlook(
        present,
        roomy and not excess,
        slow * (PREFILL_S_PER_TOKEN * queued + QUEUE_S_PER_REQUEST * (present + 1)),
        slow * PREFILL_S_PER_TOKEN,
        backend.round_trip + slow * 0.5 * step + waiting,
        slow * step,
        queued,
        max((load.prefill_budget or DEFAULT_PREFILL_BUDGET) - load.running, 1),
    )


def _present(backend: Backend) -> int:
    """Requests that the backend has: as it reported, corrected by what it cannot know of yet."""
    load = backend.load
    reported = load.running + load.waiting + backend.sent_since - backend.ended_since
    return max(reported, backend.in_flight)


def score(outlook: Outlook, prompt_tokens: int) -> float:
    """Relative cost of adding a request, in seconds; lower is better."""
    return outlook.score + outlook.score_per_token * prompt_tokens


def time_to_first_token(outlook: Outlook, prompt_tokens: int) -> float:
    """Expected seconds from dispatch to the first token."""
    steps = ceil((outlook.queued + prompt_tokens) / outlook.budget)
    return outlook.rest + outlook.step * steps
