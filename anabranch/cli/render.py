"""How results look on a terminal: tables on stdout, receipts and spinners on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from anabranch.transcript import Chunk, Transcript
from anabranch.types import Answer, Backend, Explanation, Model, RoutingPolicy, as_dict
from anabranch.vocabulary import BackendState, BreakerState

_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})


def print_json(value: object) -> None:
    """Prints a result as JSON."""
    click.echo(json.dumps(as_dict(value), ensure_ascii=False, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """Prints a table, or `empty` when there are no rows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    if not table.row_count:
        click.echo(empty)
        return
    # Piped output is for other programs: never folded to a width that no terminal has.
    Console(width=None if sys.stdout.isatty() else 10_000, highlight=False, markup=False).print(
        table
    )


def print_stream(chunks: Iterable[Chunk]) -> None:
    """Writes an answer as it arrives, after a spinner while there is none to write."""
    # A model's text must not steer the terminal; for other programs it stays as it is.
    drop = _CONTROLS if sys.stdout.isatty() else {}
    with _spinner() as stop:
        ended_line = True
        for chunk in chunks:
            if chunk.text and chunk.index == 0:
                stop()
                click.echo(chunk.text.translate(drop), nl=False)
                sys.stdout.flush()
                ended_line = chunk.text.endswith("\n")
    if not ended_line:
        click.echo()


def print_calls(answer: Answer) -> None:
    """Prints the tools that an answer calls, a line each."""
    drop = _CONTROLS if sys.stdout.isatty() else {}
    for call in answer.tool_calls:
        click.echo(f"{call.name} {call.arguments}".translate(drop))


@contextmanager
def _spinner() -> Iterator[Any]:
    """A spinner on stderr until the yielded function is called; nothing without a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda: None
        return
    status = console.status("waiting for the first token")
    status.start()
    try:
        yield status.stop
    finally:
        status.stop()


def print_receipt(answer: Transcript) -> None:
    """Says on stderr in one line what an answer used and where it ran."""
    parts: list[str] = []
    if (receipt := answer.receipt) is not None:
        parts.append(f"{receipt.tier} {receipt.backend_id}".strip())
        if receipt.resolved_model:
            parts.append(f"as {receipt.resolved_model}")
        if receipt.overflow_reason is not None:
            parts.append(f"overflowed: {receipt.overflow_reason}")
        if receipt.cache is not None:
            parts.append(f"cached: {receipt.cache}")
        if receipt.masked_entities:
            parts.append(f"{receipt.masked_entities} masked")
        if receipt.ttft is not None:
            parts.append(f"first token {milliseconds(receipt.ttft)}")
        if len(receipt.attempts) > 1:
            parts.append(f"{len(receipt.attempts)} attempts")
        if any(a.error for a in receipt.provider_attempts):
            failed = ", ".join(f"{a.provider} {a.error}" for a in receipt.provider_attempts[:-1])
            parts.append(f"after {failed}")
        if receipt.resumed_at_tokens:
            parts.append(f"resumed at {', '.join(map(str, receipt.resumed_at_tokens))}")
        if receipt.cost_microusd:
            parts.append(f"${receipt.cost_microusd / 1e6:.6f}")
    if (usage := answer.usage) is not None:
        cached = f" ({usage.cached_prompt_tokens} cached)" if usage.cached_prompt_tokens else ""
        parts.append(f"{usage.prompt_tokens}{cached} + {usage.completion_tokens} tokens")
    if (finish := answer.finish_reason) is not None:
        parts.append(f"{finish}")
    parts.append(f"request {answer.request_id}")
    click.secho(" · ".join(parts), err=True, dim=True)


def print_models(models: Sequence[Model]) -> None:
    """Prints the models as a table."""
    print_table(
        ("MODEL", "WHERE", "CONTEXT", "BACKENDS", "CAN", "ALIASES"),
        (
            (
                m.name,
                "+".join(map(str, m.tiers)),
                str(m.context_length or "?"),
                str(m.backends or "-"),
                ", ".join(map(str, m.capabilities)),
                ", ".join(m.aliases),
            )
            for m in models
        ),
        "No model is served at the moment.",
    )


def print_backends(backends: Sequence[Backend]) -> None:
    """Prints the backends as a table."""

    def row(b: Backend) -> tuple[str, ...]:
        load = b.load
        memory = (
            f"{load.kv_used_tokens / load.kv_total_tokens:.0%}"
            if load and load.kv_total_tokens
            else "-"
        )
        return (
            b.backend_id,
            str(b.tier),
            _state(b),
            b.address,
            ", ".join(b.models),
            str(b.in_flight),
            f"{load.running}+{load.waiting}" if load else "-",
            memory,
            f"{load.output_tokens_per_second:.0f}" if load else "-",
            b.detail,
        )

    print_table(
        (
            "BACKEND", "TIER", "STATE", "ADDRESS", "MODELS",
            "OURS", "RUN+WAIT", "KV", "TOKENS/S", "NOTE",
        ),
        map(row, backends),
        "The router knows no backend.",
    )  # fmt: skip


def _state(backend: Backend) -> str:
    """Its state, and what keeps it from its full share."""
    notes = ["drained"] if backend.drained else []
    if backend.breaker in (BreakerState.OPEN, BreakerState.HALF_OPEN):
        notes.append(f"breaker {backend.breaker}")
    if backend.state is BackendState.READY and 0 < backend.warmth < 1:
        notes.append(f"{backend.warmth:.0%} warm")
    return f"{backend.state} ({', '.join(notes)})" if notes else str(backend.state)


def print_explanation(explanation: Explanation) -> None:
    """Prints a verdict and the candidates behind it."""
    where = explanation.backend_id or explanation.refusal_reason
    why = f", overflowed: {explanation.overflow_reason}" if explanation.overflow_reason else ""
    click.echo(f"{explanation.verdict} {where}".rstrip() + why)
    if explanation.explanation:
        click.echo(explanation.explanation)
    click.echo(_circumstances(explanation))
    print_table(
        (
            "CANDIDATE", "TIER", "SCORE", "FIRST TOKEN", "PER TOKEN", "CACHED", "COST", "OBJECTION",
        ),
        (
            (
                c.backend_id,
                str(c.tier),
                f"{c.score:.3f}" if c.feasible else "-",
                milliseconds(c.predicted_ttft),
                milliseconds(c.predicted_tpot),
                str(c.cached_tokens or "-"),
                f"$ {c.expected_cost_microusd / 1e6:.6f}" if c.expected_cost_microusd else "-",
                c.objection,
            )
            for c in explanation.candidates
        ),
        "There was no candidate.",
    )  # fmt: skip


def _circumstances(explanation: Explanation) -> str:
    """What the decision was made with, in one line."""
    parts = [f"about {explanation.prompt_tokens} tokens for {explanation.resolved_model}"]
    goals = []
    if explanation.ttft_objective is not None:
        goals.append(f"first token within {milliseconds(explanation.ttft_objective)}")
    if explanation.tpot_objective is not None:
        goals.append(f"{milliseconds(explanation.tpot_objective)} a token")
    if goals:
        parts.append("objective: " + ", ".join(goals))
    parts.append(f"algorithm {explanation.algorithm}, policy {explanation.policy_version}")
    if explanation.overflowing:
        parts.append("the overflow valve is open")
    if explanation.waiting:
        parts.append(f"{explanation.waiting} wait in line")
    return " · ".join(parts)


def print_policy(policy: RoutingPolicy) -> None:
    """Prints a policy's document on stdout, and on stderr what is to be known about it."""
    click.echo(policy.text, nl=not policy.text.endswith("\n"))
    click.secho(f"version {policy.version} · from {policy.source}", err=True, dim=True)
    for line in policy.rejected:
        click.secho(line.translate(_CONTROLS), err=True, fg="yellow")


def print_updated(version: str) -> None:
    """Says that a policy is in force."""
    click.echo(f"in force: version {version}")


def milliseconds(seconds: float | None) -> str:
    """A time for people."""
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 10 else f"{seconds * 1000:.0f} ms"
