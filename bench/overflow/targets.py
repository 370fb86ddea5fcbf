"""What is promised of overflow, and whether a run has kept it. Pure: from the record."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.dataplane.summary import Figure, figure
from bench.dataplane.targets import Verdict
from bench.overflow.plan import Strategy
from bench.overflow.summary import attainment_over, cost_ratio, of, sound

Record = Mapping[str, Any]

ATTAINMENT = 99.0
COST_TO_CAP = 0.75

_ROUTER, _CAP = Strategy.ROUTER, Strategy.CAP


def verdicts(record: Record) -> list[Verdict]:
    """Every promise, also those that the run did not try."""
    return list(_verdicts(record, record["samples"], record["kills"]))


def _verdicts(
    record: Record, samples: Sequence[Record], kills: Sequence[Record]
) -> Iterator[Verdict]:
    mine = of(samples, _ROUTER)
    every = [*samples, *kills]
    looks = "all looks"
    left = record["provider"]["private"] if record.get("provider") else math.nan
    yield Verdict("private requests at the provider", "the whole run", "", figure([left]), 0.0)
    yield _none_of(
        "private requests neither answered nor refused honestly",
        looks,
        every,
        lambda s: s["private"]["broken"],
    )
    yield Verdict(
        "allowed requests served",
        "the router",
        "%",
        figure(100 * s["allowed"]["served_share"] for s in mine),
        100.0,
        at_most=False,
    )
    yield Verdict(
        "… within the objective",
        "the router",
        "%",
        figure(100 * s["allowed"]["slo_attainment"] for s in sound(mine)),
        ATTAINMENT,
        at_most=False,
    )
    yield Verdict(
        "cloud cost, × static cap",
        "the router",
        "×",
        cost_ratio(samples, _ROUTER, _CAP),
        COST_TO_CAP,
    )
    yield Verdict(
        "… attainment beyond the static cap's",
        "the router",
        "points",
        attainment_over(samples, _ROUTER, _CAP),
        0.0,
        at_most=False,
    )
    yield Verdict(
        "local capacity used in overload",
        "the router",
        "%",
        figure(100 * s["overload_use"] for s in sound(mine)),
        None,
        at_most=False,
    )
    yield _none_of(
        "answers not as an undisturbed one, token by token",
        looks,
        every,
        lambda s: s["allowed"]["inexact"] + s["private"]["inexact"],
    )
    yield _none_of(
        "answers from the cloud whose receipt does not say why",
        "the router",
        [*mine, *kills],
        lambda s: s["unexplained"],
    )
    where = "an engine killed"
    yield _none_of("requests that did not end whole", where, kills, not_whole)
    lost = sum(s["mid_stream"] for s in kills)
    yield Verdict(
        "answers that lost their engine in mid-stream", where, "", _total(lost, kills), None
    )
    yield Verdict(
        "… longest pause",
        where,
        "s",
        figure(s["longest_pause"] for s in kills),
        None,
    )


def not_whole(sample: Record) -> int:
    """Requests without a whole answer, but for private ones that were refused honestly."""
    allowed, private = sample["allowed"], sample["private"]
    return int(allowed["broken"] + allowed["refused"] + private["broken"])


def _none_of(what: str, where: str, samples: Sequence[Record], count: Any) -> Verdict:
    """Something that must not happen once."""
    return Verdict(what, where, "", _total(sum(map(count, samples)), samples), 0.0)


def _total(count: int, samples: Sequence[Record]) -> Figure:
    return figure([float(count)] if samples else [math.nan])


def headline(record: Record) -> str:
    """The run in one sentence; empty where it has not measured what the sentence says."""
    samples = record["samples"]
    mine = sound(of(samples, _ROUTER))
    ratio = cost_ratio(samples, _ROUTER, _CAP)["median"]
    if not mine or ratio is None:
        return ""
    attained = figure(100 * s["allowed"]["slo_attainment"] for s in mine)["median"]
    share = figure(100 * s["allowed"]["cloud_share"] for s in mine)["median"]
    private = sum(s["private"]["requests"] for s in samples)
    machine = record["circumstances"]["machine"]
    return (
        f"With bursts between {_loads(record)} × the local capacity, the router serves "
        f"{attained:.1f} % of the requests that may leave within the objective and sends "
        f"{share:.0f} % of them to the cloud, which costs {ratio:.2f} × what a static cap spends; "
        f"of {private:,} private requests {sum(s['provider_private'] for s in samples)} left "
        f"({machine['cores']} × {machine['cpu']}, rounds: {len(mine)}, simulated engines and "
        "provider)."
    )


def _loads(record: Record) -> str:
    loads = [phase["load"] for phase in record["plan"]["phases"]]
    return f"{min(loads):g} and {max(loads):g}"
