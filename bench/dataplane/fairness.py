"""What one tenant's many streams do to another's few: the delays between the few's tokens.

The few are looked at alone, with a crowd through the same router, and with the same crowd past
the router, straight at the engine. Crowd and few have a load generator each, and all share the
machine and the engine: what the third way adds to the first is theirs, and only what the second
adds to the third is the router's. The ways alternate within each round.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bench.dataplane.fake_engine import model_name
from bench.dataplane.generator import Order
from bench.dataplane.measure import Generator, Progress, Sample
from bench.dataplane.modes import Effort
from bench.dataplane.plan import Cell, Form, Path
from bench.dataplane.stack import NEIGHBOUR, Stack
from bench.dataplane.summary import figure

PACE = 20
"""Milliseconds of an engine step."""

FEW = Cell(16, PACE)
CROWDS = (Cell(1_000, PACE, sessions=1), Cell(1_000, PACE, sessions=4))

BOUND = 1.2
"""What a crowd may do to the p99 of another tenant's delays between tokens, as a ratio."""

_HEAD_START_S = 1.0
"""The crowd is there before the few are looked at, and leaves after them."""
_SETTLE_S = 0.5


class Way(StrEnum):
    """Where the crowd is."""

    ALONE = "alone"
    THROUGH = "through"
    PAST = "past"


@dataclass(frozen=True)
class Tenants:
    """The load generators of both."""

    few: Generator
    crowd: Generator


def looks(crowds: Sequence[Cell]) -> int:
    """Looks in one round."""
    return 1 + 2 * len(crowds)


async def fairness(
    stack: Stack,
    tenants: Tenants,
    effort: Effort,
    progress: Progress,
    *,
    form: Form = Form.SESSION,
    crowds: Sequence[Cell] = CROWDS,
) -> dict[str, Any]:
    """The few's delays in each way, with each crowd; both use `form`."""
    through, past = _paths(form)
    samples: list[Sample] = []
    for number in range(effort.rounds):
        ways: list[tuple[Way, Cell | None]] = [(Way.ALONE, None)]
        ways += [(way, crowd) for crowd in crowds for way in (Way.PAST, Way.THROUGH)]
        for way, crowd in ways:
            path = past if way is Way.PAST else through
            orders = (
                await _order(stack, FEW, through, effort, neighbour=True),
                await _order(stack, crowd, path, effort) if crowd else None,
            )
            sample = await _look(tenants, *orders)
            named = {"way": way.value, "crowd": crowd.name if crowd else "", "round": number}
            samples.append(sample | named)
            beside = f"{crowd.label}, {way} the router" if crowd else "nobody"
            progress.step(
                f"beside {beside}: p99 {sample['gap_p99_ms']:.1f} ms between tokens, router "
                f"{sample['cores']['proxy']:.2f} cores{_errors(sample)}"
            )
    return {"form": form.value, "rows": rows(crowds, samples), "samples": samples}


def _paths(form: Form) -> tuple[Path, Path]:
    if form is Form.SESSION:
        return Path.ROUTER_SESSION, Path.DIRECT_SESSION
    return Path.ROUTER_PLAIN, Path.DIRECT_PLAIN


async def _order(
    stack: Stack, cell: Cell, path: Path, effort: Effort, *, neighbour: bool = False
) -> Order:
    longer = 0.0 if neighbour else 2 * _HEAD_START_S
    return Order(
        target=stack.target(path),
        form=path.form.value,
        model=model_name(cell.pace_ms),
        streams=cell.streams,
        connections=cell.connections(path.form),
        tokens=cell.tokens,
        warm=effort.warm,
        window=effort.window + longer,
        authorization=await stack.authorization(NEIGHBOUR if neighbour else "demo"),
        proxy=tuple(stack.proxy_pids(Path.ROUTER_SESSION)),
        engine=tuple(stack.engine_pids()),
        pace_ms=cell.pace_ms,
    )


async def _look(tenants: Tenants, few: Order, crowd: Order | None) -> Sample:
    async def beside() -> Sample:
        return await tenants.crowd.look(crowd) if crowd else {}

    async def late() -> Sample:
        await asyncio.sleep(_HEAD_START_S if crowd else 0.0)
        return await tenants.few.look(few)

    async with asyncio.TaskGroup() as tasks:
        others, mine = tasks.create_task(beside()), tasks.create_task(late())
    await asyncio.sleep(_SETTLE_S)
    sample, around = mine.result(), others.result()
    cores = {name: used / sample["seconds"] for name, used in sample["cpu_seconds"].items()}
    return sample | {
        "cores": cores,
        "crowd_tokens_per_second": around.get("tokens_per_second", math.nan),
        "crowd_gap_p99_ms": around.get("gap_p99_ms", math.nan),
        "crowd_errors": around.get("errors", {}),
    }


def _errors(sample: Sample) -> str:
    count = sum((*sample["errors"].values(), *sample["crowd_errors"].values()))
    return f", {count} errors" if count else ""


def rows(crowds: Sequence[Cell], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """One row a way and crowd; ratios to being alone are taken within a round. Pure."""
    alone = {s["round"]: s for s in samples if s["way"] == Way.ALONE}
    found = []
    for way, name in [(Way.ALONE, "")] + [
        (way, crowd.name) for crowd in crowds for way in (Way.PAST, Way.THROUGH)
    ]:
        mine = [s for s in samples if (s["way"], s["crowd"]) == (way, name)]
        if not mine:
            continue
        found.append(
            {
                "way": way.value,
                "crowd": name,
                "rounds": len(mine),
                "errors": sum(sum(s["errors"].values()) for s in mine),
                "p50_ms": figure(s["gap_p50_ms"] for s in mine),
                "p99_ms": figure(s["gap_p99_ms"] for s in mine),
                "p99_to_alone": figure(
                    s["gap_p99_ms"] / alone[s["round"]]["gap_p99_ms"]
                    for s in mine
                    if s["round"] in alone
                ),
                "crowd_tokens_per_second": figure(s["crowd_tokens_per_second"] for s in mine),
                "router_cores": figure(s["cores"]["proxy"] for s in mine),
                "engine_cores": figure(s["cores"]["engine"] for s in mine),
            }
        )
    return found


def section(found: Mapping[str, Any]) -> Iterator[str]:
    """The part of the page. Pure."""
    yield "## One tenant's crowd beside another's few\n"
    yield (
        f"{FEW.streams} streams of one tenant over a {found['form']}, a token every {PACE} ms, "
        "alone, beside another tenant's crowd *past* the router (straight at the same engine: "
        f"what machine and engine do), and beside it *through* the router. At most {BOUND:g} × "
        "the p99 of being alone is wanted.\n"
    )
    columns = ["crowd", "way", "p50 ms", "p99 ms", "p99 × alone", "crowd's tokens/s"]
    columns += ["router cores", "engine cores"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for row in found["rows"]:
        yield (
            f"| {row['crowd'] or '–'} | {row['way']} | {_of(row['p50_ms'])} | {_of(row['p99_ms'])} "
            f"| {_of(row['p99_to_alone'], 2)} | {_of(row['crowd_tokens_per_second'], 0)} "
            f"| {_of(row['router_cores'], 2)} | {_of(row['engine_cores'], 2)} |"
        )
    yield ""


def _of(value: Mapping[str, float | None], digits: int = 1) -> str:
    if value["median"] is None:
        return "–"
    middle, least, most = (f"{value[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return middle if least == most else f"{middle} ({least}–{most})"
