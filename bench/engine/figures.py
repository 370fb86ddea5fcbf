"""From the requests of a look to its figures. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bench.engine.flight import Answered, Flight
from bench.engine.plan import Objective

SATURATED = 0.9
"""Share of a core from which a caller's process may have been the bottleneck."""

NOISY = 0.125
"""Share of the cores that other programs took, from which a look is doubtful."""

Sample = dict[str, Any]


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that so large a share does not exceed; NaN of nothing."""
    if not values:
        return math.nan
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def tpots(flights: Sequence[Flight]) -> list[float]:
    """Seconds a token after the first, of each answer that was streamed and has more than one."""
    return [
        (flight.last - flight.first) / (flight.tokens - 1)
        for flight in flights
        if flight.first and flight.tokens > 1
    ]


def sample(answers: Sequence[Answered], objective: Objective, tokens: int) -> Sample:
    """The figures of a look at requests of `tokens` tokens each."""
    flights = [flight for answer in answers for flight in answer.flights]
    whole = [flight for flight in flights if flight.tokens == tokens and not flight.error]
    began = min((flight.sent for flight in flights), default=0.0)
    seconds = max((flight.last for flight in whole), default=began) - began
    ttfts = [flight.first - flight.sent for flight in whole if flight.first]
    paces = tpots(whole)
    good = sum(
        flight.first - flight.sent <= objective.ttft and pace <= objective.tpot
        for flight, pace in zip((f for f in whole if f.first), paces, strict=False)
    )
    streamed = bool(ttfts)
    return {
        "requests": len(flights),
        "whole": len(whole),
        "tokens": sum(flight.tokens for flight in whole),
        "seconds": seconds,
        "tokens_per_second": _each(sum(flight.tokens for flight in whole), seconds),
        "ttft_p50_ms": quantile(ttfts, 0.5) * 1e3,
        "ttft_p99_ms": quantile(ttfts, 0.99) * 1e3,
        "tpot_p50_ms": quantile(paces, 0.5) * 1e3,
        "tpot_p99_ms": quantile(paces, 0.99) * 1e3,
        "goodput": _each(good, seconds) if streamed else math.nan,
        "within": _each(good, len(flights)) if streamed else math.nan,
        "generator_cores": max((_each(a.cpu_seconds, a.seconds) for a in answers), default=0.0),
        "failures": sorted({flight.error for flight in flights if flight.error}),
    }


def _each(amount: float, of: float) -> float:
    return amount / of if of else math.nan


def costs(
    found: Sample, server: float, elapsed: float, busy: float, *, callers: bool, cores: int
) -> dict[str, Any]:
    """What a look cost: CPU seconds of the path's processes while it lasted `elapsed` seconds, of
    the whole machine `busy`, and marks of what makes it doubtful. `callers`: they are processes of
    their own."""
    marks = []
    if callers and found["generator_cores"] >= SATURATED:
        marks.append("generator saturated")
    generators = found.pop("generator_seconds", 0.0)
    others = max(0.0, busy - server - generators) / elapsed if elapsed else 0.0
    if others >= NOISY * cores:
        marks.append("machine busy")
    if found["whole"] < found["requests"]:
        marks.append("answers missing")
    return {
        "cpu_seconds": server,
        "cpu_us_per_token": _each(server * 1e6, found["tokens"]),
        "server_cores": _each(server, elapsed),
        "other_cores": others,
        "marks": marks,
    }


def in_short(found: Mapping[str, Any]) -> str:
    """One look in a few words."""
    parts = [f"{found['tokens_per_second']:9,.1f} tok/s"]
    if not math.isnan(found["ttft_p50_ms"]):
        parts.append(f"TTFT {found['ttft_p50_ms']:7,.1f} ms")
        parts.append(f"TPOT {found['tpot_p50_ms']:6,.2f} ms")
    parts.append(f"{found['cpu_us_per_token']:8,.0f} µs CPU/token")
    parts += found["marks"] + found["failures"][:1]
    return "  ".join(parts)
