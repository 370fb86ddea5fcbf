"""Predicts how soon a backend would answer. Pure arithmetic on its load report.

A first form of the predicted-latency score: time grows with the prompt tokens
queued ahead and with the requests already there, scaled by how slow the backend
measures itself to be. Its constants are those of one H100 with an 8B model
where the backend reports no step time of its own.
"""

from __future__ import annotations

import math

from services.router.core.values import Backend

DEFAULT_STEP_S = 0.006
PREFILL_S_PER_TOKEN = 17.25e-6
QUEUE_S_PER_REQUEST = 0.0005
DEFAULT_PREFILL_BUDGET = 2048
TYPICAL_OUTPUT_TOKENS = 200


def present(backend: Backend) -> int:
    """Requests that the backend has: as it reported, corrected by what it cannot know of yet."""
    load = backend.load
    reported = load.running + load.waiting + backend.sent_since - backend.ended_since
    return max(reported, backend.in_flight)


def score(backend: Backend, prompt_tokens: int) -> float:
    """Relative cost of adding a request, in seconds; lower is better."""
    queued = backend.load.queued_prefill_tokens + backend.sent_tokens_since
    work = PREFILL_S_PER_TOKEN * (queued + prompt_tokens)
    return backend.load.step_time_ratio * (work + QUEUE_S_PER_REQUEST * (present(backend) + 1))


def time_to_first_token(backend: Backend, prompt_tokens: int) -> float:
    """Expected seconds from dispatch to the first token."""
    load = backend.load
    step = load.step_time or DEFAULT_STEP_S
    queued = load.queued_prefill_tokens + backend.sent_tokens_since + prompt_tokens
    budget = max((load.prefill_budget or DEFAULT_PREFILL_BUDGET) - load.running, 1)
    prefill = math.ceil(queued / budget) * step
    excess = max(present(backend) + 1 - load.max_running, 0) if load.max_running else 0
    waiting = excess * TYPICAL_OUTPUT_TOKENS * step / max(load.running, 1)
    return backend.round_trip + load.step_time_ratio * (prefill + 0.5 * step) + waiting


def time_per_output_token(backend: Backend) -> float:
    """Expected seconds between tokens, once decoding."""
    return backend.load.step_time_ratio * (backend.load.step_time or DEFAULT_STEP_S)


def has_free_slot(backend: Backend) -> bool:
    """Whether a request would start at once, by count and by cache space."""
    load = backend.load
    if load.max_running and present(backend) >= load.max_running:
        return False
    return not load.kv_total_tokens or load.kv_used_tokens < load.kv_total_tokens
