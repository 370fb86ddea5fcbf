"""What `anabranch quantize` says in the end: as values for JSON, as a table, as a page. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from services.local_engine.on_vllm.quantize.checkpoint import Made
from services.local_engine.on_vllm.quantize.comparison import Comparison
from services.local_engine.on_vllm.quantize.figures import Interval


def as_values(
    made: Made, comparison: Comparison | None, facts: Mapping[str, object]
) -> dict[str, Any]:
    """The report for other programs. Shares and losses are fractions, sizes bytes."""
    report: dict[str, Any] = {
        "checkpoint": str(made.path),
        "scheme": made.scheme.value,
        "layers": made.layers,
        "kept": list(made.kept),
        "source_bytes": made.source_bytes,
        "source_bf16_bytes": made.bf16_bytes,
        "bytes": made.bytes,
        "smaller_than_source": 1 - made.bytes / made.source_bytes,
        "smaller_than_bf16": 1 - made.bytes / made.bf16_bytes,
    }
    if comparison is not None:
        report["facts"] = dict(facts)
        report["evaluator"] = comparison.evaluator
        if comparison.why:
            report["vllm_said"] = comparison.why
        report["accuracy"] = asdict(comparison.accuracy)
        report["pace"] = [
            {
                **asdict(pace),
                "original_median": pace.medians[0],
                "smaller_median": pace.medians[1],
                "ratio": dict(zip(("least", "median", "greatest"), pace.ratios, strict=True)),
            }
            for pace in comparison.paces
        ]
    return report


def rows(made: Made, comparison: Comparison | None) -> list[tuple[str, str, str, str]]:
    """A table: what, the original, the smaller one, the difference."""
    table = [
        (
            "size of the weights",
            _megabytes(made.source_bytes),
            _megabytes(made.bytes),
            _smaller(made.source_bytes, made.bytes),
        ),
        (
            "… against 16 bits a number",
            _megabytes(made.bf16_bytes),
            _megabytes(made.bytes),
            _smaller(made.bf16_bytes, made.bytes),
        ),
    ]
    if comparison is None:
        return table
    found = comparison.accuracy
    perplexity = [f"{value:.2f}" for value in found.perplexity]
    tokens = [f"{100 * value:.1f} %" for value in found.next_token]
    answers = [f"{100 * value:.1f} %" for value in found.answers]
    growth = _percent(found.perplexity_growth, sign=True)
    table += [
        ("perplexity", perplexity[0], perplexity[1], growth),
        ("next token right", tokens[0], tokens[1], f"loses {_percent(found.next_token_loss)}"),
        ("questions right", answers[0], answers[1], f"loses {_percent(found.answers_loss)}"),
        ("same likeliest token", "", "", _percent(found.agreement)),
    ]
    for pace in comparison.paces:
        before, after = pace.medians
        least, median, greatest = pace.ratios
        name = "1 stream" if pace.streams == 1 else f"{pace.streams} streams"
        table.append(
            (
                f"tokens/s, {name}",
                f"{before:.1f}",
                f"{after:.1f}",
                f"{median:.2f} times ({least:.2f} to {greatest:.2f})",
            )
        )
    return table


def markdown(table: list[tuple[str, str, str, str]]) -> str:
    """The table for a page."""
    lines = ["| | original | smaller | difference |", "|---|---:|---:|---|"]
    lines += [f"| {' | '.join(row)} |" for row in table]
    return "\n".join(lines)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _smaller(before: int, after: int) -> str:
    share = 100 * (1 - after / before)
    return f"{share:.1f} % smaller" if share >= 0 else f"{-share:.1f} % larger"


def _percent(value: Interval, *, sign: bool = False) -> str:
    form = "+.1f" if sign else ".1f"
    each = (format(100 * part, form) for part in (value.value, value.low, value.high))
    middle, low, high = each
    return f"{middle} % ({low} to {high})"
