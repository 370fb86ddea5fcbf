"""How long one decision takes: the real `choose` on pools of 16 and 128 backends.

CPU time of this thread, so that other programs do not count. Between two decisions one backend
reports and one request is sent, as under load, so that what the core remembers of each must be
renewed; building the snapshot is measured apart.
"""

from __future__ import annotations

import gc
import time
from random import Random
from typing import Any

from bench.routing.candidate_backend import MODEL, CandidateBackend
from bench.routing.quantiles import percentile
from bench.routing.replica import Report, Shape
from bench.routing.workloads import Job
from services.router.core.decide import choose
from services.router.core.policy import Policy
from services.router.core.prefix import PrefixIndex
from services.router.core.terms import terms_of
from services.router.core.values import Dispatch, Pool, Request

BACKENDS = (16, 128)
DECISIONS = 4_000
ROUNDS = 5
WARM_UP = 500

LONG_PROMPT = 32_768
BLOCKS = 512
"""The names of that prompt's blocks, of 64 tokens each; more are never sent."""

SHARED = 64
"""Long prompts that the backends' caches hold; every fourth backend holds each of them, to a
depth of its own."""


def measure(decisions: int = DECISIONS, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """One row for each size of a pool, without and with prefix blocks.

    Times are in µs, one for each round: the kinds take turns, so that a disturbed moment falls on
    all alike.
    """
    kinds = [(backends, with_blocks) for backends in BACKENDS for with_blocks in (False, True)]
    played = [[_row(*kind, decisions) for kind in kinds] for _ in range(rounds)]
    return [
        {
            name: [row[name] for row in same] if name.endswith("_us") else value
            for name, value in same[0].items()
        }
        for same in zip(*played, strict=True)
    ]


def _row(count: int, with_blocks: bool, decisions: int) -> dict[str, Any]:
    random = Random(count)  # noqa: S311 - nothing secret hangs on it
    policy, shape = Policy(), Shape()
    terms = terms_of(policy, MODEL)
    backends = [CandidateBackend(f"replica-{i}", shape, 1, policy.breaker) for i in range(count)]
    for backend in backends:
        backend.tracker.connected(0.0)
        backend.reported(_report(random, shape), 0)
    prompts = [tuple(random.getrandbits(63) for _ in range(BLOCKS)) for _ in range(SHARED)]
    prefixes = _prefixes(backends, prompts, random) if with_blocks else None
    chosen, whole = [], []
    starts = [0] * count
    numbers = {backend.id: i for i, backend in enumerate(backends)}
    clock = time.thread_time_ns
    # As in a router's process: what is there from the start is none of the collector's business.
    gc.collect()
    gc.freeze()
    for turn in range(WARM_UP + decisions):
        tokens = LONG_PROMPT if with_blocks else random.randint(50, 4000)
        blocks = random.choice(prompts) if with_blocks else ()
        request = Request(MODEL, tokens, blocks=blocks)
        began = clock()
        pool = Pool(tuple([backend.tracker.view() for backend in backends]), prefixes, turn)
        there = clock()
        verdict = choose(request, pool, terms, 100.0 + turn * 1e-3, random)
        ended = clock()
        if turn >= WARM_UP:
            whole.append((ended - began) / 1e3)
            chosen.append((ended - there) / 1e3)
        if isinstance(verdict, Dispatch):  # else every cache is full until somebody reports
            place = numbers[verdict.backend_id]
            starts[place] += 1
            backends[place].sent(Job(turn, 0.0, tokens, 1), starts[place], verdict.tokens, 100.0)
        teller = random.randrange(count)
        backends[teller].reported(_report(random, shape), starts[teller])
    return {
        "backends": count,
        "prefix_blocks": BLOCKS if with_blocks else 0,
        "decisions": decisions,
        "choose_p50_us": percentile(sorted(chosen), 50),
        "choose_p99_us": percentile(sorted(chosen), 99),
        "with_snapshot_p50_us": percentile(sorted(whole), 50),
        "with_snapshot_p99_us": percentile(sorted(whole), 99),
    }


def _report(random: Random, shape: Shape) -> Report:
    running = random.randint(50, 180)
    context = running * 1200
    return Report(
        running,
        0,
        random.randint(0, 6000),
        context,
        context,
        shape.kv_tokens,
        random.choice((1.0, 1.0, 2.0)),
        600.0,
        0.028,
        shape.max_running,
        shape.budget,
    )


def _prefixes(
    backends: list[CandidateBackend], prompts: list[tuple[int, ...]], random: Random
) -> PrefixIndex:
    index = PrefixIndex(SHARED * BLOCKS)
    for backend in backends:
        index.reports(backend.id)
        for prompt in prompts:
            if random.random() < 0.25:
                index.stored(backend.id, prompt[: random.randint(1, BLOCKS)])
    return index
