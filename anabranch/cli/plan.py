"""`anabranch plan`: what a workload costs a year in the cloud, on own GPUs, or on both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median_low
from typing import Any

import click

from anabranch.cli.connection import Connection
from anabranch.cli.options import json_option, only_model
from anabranch.cli.plan_view import print_plan
from anabranch.cli.render import print_json
from anabranch.planning import CloudPrices, PlanningError, Replica, Workload
from anabranch.planning import plan as make_plan
from anabranch.sync import Client
from anabranch.types import Load
from anabranch.vocabulary import Tier

_POSITIVE = click.FloatRange(min=0, min_open=True)
_SHARE = click.FloatRange(0, 1)
_DOLLARS = click.FloatRange(min=0)


@dataclass(frozen=True)
class _Figures:
    """What a plan is made of, and where it is from, for people."""

    replica: Replica
    prices: CloudPrices
    sources: tuple[str, ...]


@click.command()
@click.option(
    "--requests-per-day", type=_POSITIVE, required=True, help="Requests a day, mean over the week."
)
@click.option("--prompt-tokens", type=_POSITIVE, required=True, help="Of a request, mean.")
@click.option("--output-tokens", type=_POSITIVE, required=True, help="Of an answer, mean.")
@click.option(
    "--gpu-hour",
    type=_DOLLARS,
    required=True,
    metavar="USD",
    help="What a GPU costs an hour: its rent, or price ÷ hours of its life plus power and room.",
)
@click.option(
    "--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="GPUs of one replica."
)
@click.option(
    "--cloud-prompt", type=_DOLLARS, metavar="USD", help="The provider's price of 1M prompt tokens."
)
@click.option(
    "--cloud-output", type=_DOLLARS, metavar="USD", help="The provider's price of 1M output tokens."
)
@click.option(
    "--cloud-cached",
    type=_DOLLARS,
    metavar="USD",
    help="The price of 1M prompt tokens found in its cache. [default: as --cloud-prompt]",
)
@click.option(
    "--throughput",
    type=_POSITIVE,
    metavar="TOKENS/S",
    help="Output tokens a second of one full replica. Left out, the cluster's engines say it.",
)
@click.option(
    "--prompt-throughput",
    type=_POSITIVE,
    metavar="TOKENS/S",
    help="Prompt tokens a second that a replica reads. [default: contained in --throughput]",
)
@click.option(
    "--slots",
    type=click.IntRange(min=1),
    help="Requests that a replica answers at once. [default: 256, or what the engines say]",
)
@click.option(
    "--token-time",
    type=_POSITIVE,
    default=100.0,
    show_default=True,
    metavar="MS",
    help="Longest time a token: bounds the slots that are planned with, where engines say them.",
)
@click.option("-m", "--model", help="The cluster's model whose figures are taken.")
@click.option(
    "--peak",
    type=float,
    default=2.5,
    show_default=True,
    help="The busiest hour of a day, as a multiple of its mean hour; 1 is flat.",
)
@click.option(
    "--weekend",
    type=float,
    default=1.0,
    show_default=True,
    help="A day of the weekend, as a multiple of a weekday.",
)
@click.option(
    "--private",
    type=_SHARE,
    default=0.0,
    show_default=True,
    help="Share of requests that may not leave.",
)
@click.option(
    "--cached",
    type=_SHARE,
    default=0.0,
    show_default=True,
    help="Share of prompt tokens that prefix caches hold.",
)
@click.option(
    "--waiting",
    type=float,
    default=0.01,
    show_default=True,
    help="Share that may have to wait in the busiest hour, where it cannot overflow.",
)
@click.option(
    "--spare",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Further replicas that local only keeps for failures.",
)
@json_option
@click.pass_obj
def plan(connection: Connection, /, as_json: bool, model: str | None, **given: Any) -> None:
    """Say what a workload costs a year: cloud only, local only, or local with overflow.

    Hybrid is the number of replicas that costs least when what finds them busy goes to the cloud.
    Also said: from how many requests a day on replicas pay. Throughput and prices that are left
    out are the cluster's own (needs the scope observe or admin): the engines report how long
    their steps take, the cloud proxy what its provider charges.

    \b
    Examples:
      anabranch plan --requests-per-day 2e6 --prompt-tokens 1200 --output-tokens 300 \\
          --gpu-hour 2.50 --cloud-prompt 0.40 --cloud-output 1.60 --throughput 13000
      anabranch plan --requests-per-day 50000 --prompt-tokens 800 --output-tokens 200 \\
          --gpu-hour 2.50 --model llama-3.1-8b --private 0.2 --json
    """
    work = Workload(
        requests_per_day=given["requests_per_day"],
        prompt_tokens=given["prompt_tokens"],
        output_tokens=given["output_tokens"],
        peak=given["peak"],
        weekend=given["weekend"],
        private=given["private"],
        cached=given["cached"],
    )
    try:
        figures = _figures(connection, work, model, given, as_json=as_json)
        found = make_plan(
            work, figures.replica, figures.prices, waiting=given["waiting"], spare=given["spare"]
        )
    except PlanningError as refused:
        raise click.UsageError(str(refused)) from None
    if as_json:
        print_json({"plan": found, "sources": figures.sources})
    else:
        print_plan(found, figures.sources)


def _figures(
    connection: Connection,
    work: Workload,
    model: str | None,
    given: dict[str, Any],
    *,
    as_json: bool,
) -> _Figures:
    hourly = given["gpu_hour"] * given["gpus"]
    prices = _given_prices(given)
    replica = _given_replica(given, hourly)
    if replica is not None and prices is not None:
        return _Figures(replica, prices, ("throughput: as given", "prices: as given"))
    with connection.client(as_json=as_json) as client:
        name = model or only_model(client)
        said_replica, said_prices = "throughput: as given", "prices: as given"
        if replica is None:
            replica, said_replica = _measured(client, name, work, given, hourly)
        if prices is None:
            prices, said_prices = _charged(client, name)
        if given["cloud_cached"] is not None:
            prices = replace(prices, cached_prompt=given["cloud_cached"])
    return _Figures(replica, prices, (said_replica, said_prices))


def _given_prices(given: dict[str, Any]) -> CloudPrices | None:
    prompt, output = given["cloud_prompt"], given["cloud_output"]
    if (prompt is None) != (output is None):
        raise click.UsageError("--cloud-prompt and --cloud-output belong together")
    return None if prompt is None else CloudPrices(prompt, output, given["cloud_cached"])


def _given_replica(given: dict[str, Any], hourly: float) -> Replica | None:
    if given["throughput"] is None:
        if given["prompt_throughput"] is not None:
            raise click.UsageError("--prompt-throughput needs --throughput")
        return None
    return Replica(
        output_tokens_per_second=given["throughput"],
        prompt_tokens_per_second=given["prompt_throughput"] or float("inf"),
        slots=given["slots"] or 256,
        dollars_per_hour=hourly,
    )


def _measured(
    client: Client, model: str, work: Workload, given: dict[str, Any], hourly: float
) -> tuple[Replica, str]:
    """One replica as the middle one of those that serve the model, by what each reports."""
    found = []
    for backend in client.backends():
        load = backend.load
        if backend.tier is Tier.LOCAL and model in backend.models and load is not None:
            replica = _reported(load, work, given, hourly)
            if replica is not None:
                found.append(replica)
    if not found:
        raise click.UsageError(
            f"no engine of {model!r} has said yet how long its steps take: give --throughput, or "
            "send it requests first"
        )
    speeds = [replica.output_tokens_per_second for replica in found]
    middle = found[speeds.index(median_low(speeds))]
    count = f"{len(found)} engines" if len(found) > 1 else "1 engine"
    return middle, f"throughput: fitted from the steps of {count} of {model}"


def _reported(load: Load, work: Workload, given: dict[str, Any], hourly: float) -> Replica | None:
    slots = given["slots"] or load.max_running
    if load.step_pace is None or not slots:
        return None
    return load.step_pace.replica(
        work,
        slots=slots,
        kv_tokens=load.kv_total_tokens,
        dollars_per_hour=hourly,
        token_time=given["token_time"] / 1e3,
    )


def _charged(client: Client, model: str) -> tuple[CloudPrices, str]:
    for info in client.models():
        if model in (info.name, *info.aliases) and info.prices is not None:
            where = " ".join(filter(None, (info.provider, info.served_model)))
            return info.prices, f"prices: what the cluster's cloud proxy has for {where or model}"
    raise click.UsageError(
        f"the cluster knows no prices of {model!r} in the cloud: give --cloud-prompt and "
        "--cloud-output"
    )
