"""How a plan looks on a terminal: the ways, a bar for each number of replicas, break-evens."""

from __future__ import annotations

from collections.abc import Sequence

import click

from anabranch.cli.render import print_table
from anabranch.planning import Option, Plan

_BAR = 44
_MOST_BARS = 12


def print_plan(plan: Plan, sources: Sequence[str]) -> None:
    """Prints a plan; where its figures are from goes to stderr."""
    work = plan.work
    click.echo(
        f"{work.requests_per_day:,.0f} requests a day of {work.prompt_tokens:,.0f} + "
        f"{work.output_tokens:,.0f} tokens; in the busiest hour {_few(plan.peak_requests)} run at "
        "once on average."
    )
    replica = plan.replica
    click.echo(
        f"A replica: {replica.output_tokens_per_second:,.0f} output tokens/s in {replica.slots} "
        f"slots, a request takes {plan.request_seconds:.1f} s when all are busy, "
        f"{dollars(replica.dollars_per_hour * 8760)} a year.\n"
    )
    ways = (
        ("cloud only", plan.cloud_only),
        ("local only", plan.local_only),
        ("hybrid", plan.hybrid),
    )
    cheapest = min((o for _, o in ways if not o.objection), key=lambda o: o.dollars)
    print_table(
        ("WAY", "REPLICAS", "OWN GPUS", "CLOUD", "A YEAR", "IN THE CLOUD", "SLOTS BUSY", "NOTE"),
        (
            (
                name,
                str(option.replicas),
                dollars(option.local_dollars),
                dollars(option.cloud_dollars),
                dollars(option.dollars),
                share(option.cloud_share),
                share(option.utilisation) if option.replicas else "-",
                option.objection or ("cheapest" if option is cheapest else ""),
            )
            for name, option in ways
        ),
        "",
    )
    click.echo("\nA year by replicas, the rest in the cloud (█ own GPUs, ░ cloud):")
    _print_bars(plan)
    click.echo()
    _print_break_even("The first replica pays", plan.first_replica_pays_from)
    _print_break_even("Local only beats cloud only", plan.local_only_pays_from)
    for source in sources:
        click.secho(source, err=True, dim=True)


def _print_bars(plan: Plan) -> None:
    """One line for each number of replicas; of many, those around the best and some between."""
    shown = _some(plan.options, plan.hybrid.replicas)
    most = max(option.dollars for option in shown) or 1.0
    width = max(len(str(option.replicas)) for option in shown)
    for option in shown:
        whole = round(option.dollars / most * _BAR)
        own = min(whole, round(option.local_dollars / most * _BAR))
        bar = "█" * own + "░" * (whole - own)
        mark = " ← hybrid" if option is plan.hybrid else ""
        note = f"  ({option.objection})" if option.objection else ""
        click.echo(
            f"  {option.replicas:>{width}} {bar:<{_BAR}} {dollars(option.dollars):>9}{mark}{note}"
        )


def _some(options: Sequence[Option], best: int) -> list[Option]:
    if len(options) <= _MOST_BARS:
        return list(options)
    step = (len(options) - 1) / (_MOST_BARS - 4)
    chosen = {round(i * step) for i in range(_MOST_BARS - 3)}
    chosen |= {i for i in (best - 1, best, best + 1) if 0 <= i < len(options)}
    return [options[i] for i in sorted(chosen)]


def _print_break_even(what: str, requests: float | None) -> None:
    if requests is None:
        click.echo(f"{what} at no volume, at these prices.")
    else:
        click.echo(f"{what} from about {_rounded(requests):,.0f} requests a day on.")


def _few(value: float) -> str:
    return f"{value:,.1f}" if value < 10 else f"{value:,.0f}"


def _rounded(value: float) -> float:
    """Two digits: the figures that went in are no better."""
    return float(f"{value:.2g}")


def dollars(value: float) -> str:
    """An amount of money for people."""
    if 0 < value < 0.005:
        return "<$0.01"
    if value >= 999_500:
        return f"${value / 1e6:,.2f}M"
    return f"${value:,.0f}" if value >= 100 or not value else f"${value:.2f}"


def share(value: float) -> str:
    """A share in percent; what is there is never shown as nothing."""
    return "<0.1%" if 0 < value < 0.001 else f"{value:.1%}"
