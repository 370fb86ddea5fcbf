"""Makes the small model smaller in each scheme and writes what that gains and loses.

    python -m bench.quantize run        a scheme after the other, then the page: 15 minutes
    python -m bench.quantize report     the page anew, from .build/quantize

It only calls `anabranch quantize`, whose reports it keeps; a scheme that has none is left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / ".models/smollm2-135m-instruct"
WORK = ROOT / ".build/quantize"
OUT = ROOT / "docs/benchmarks/quantize"
SCHEMES = ("int8", "int8-weights", "fp8")
CLAIM_SMALLER, CLAIM_LOSS = 0.58, 0.03
"""What the field says of 8 bits: 58 % smaller, at most 3 % of the accuracy lost."""


def run(rounds: int) -> None:
    """Makes and compares every scheme. Raises CalledProcessError when one cannot be made."""
    WORK.mkdir(parents=True, exist_ok=True)
    for scheme in SCHEMES:
        command = [sys.executable, "-m", "services.local_engine.on_vllm.quantize", str(MODEL)]
        command += [str(WORK / f"model-{scheme}"), "--scheme", scheme, "--force"]
        command += ["--rounds", str(rounds), "--tokens", "32"]
        command += ["--report", str(WORK / f"{scheme}.json")]
        subprocess.run(command, cwd=ROOT, check=True)


def reports() -> dict[str, dict[str, Any]]:
    """The reports that are there, by scheme; where the checkpoint lay is nobody's concern."""
    found = {}
    for scheme in SCHEMES:
        file = WORK / f"{scheme}.json"
        if file.is_file():
            found[scheme] = json.loads(file.read_text("utf-8")) | {"checkpoint": f"model-{scheme}"}
    return found


def page(found: dict[str, dict[str, Any]]) -> str:
    """The page in Markdown."""
    first = next(iter(found.values()))
    facts = first["facts"]
    seen = first["accuracy"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [
        "# What 8 bits gain and lose",
        "",
        "Made by `make bench-quantize` from [quantize.json](quantize.json); the machine: "
        f"{facts['cores']} cores, {facts['device']}; {versions}. The model: "
        f"SmolLM2-135M-Instruct, {first['source_bytes'] / 1e6:.0f} MB in float32, whose published "
        "weights are Q4_1. In brackets: where 95 of 100 bootstrap samples lie.",
        "",
        "| | " + " | ".join(f"`{name}`" for name in found) + " |",
        "|---|" + "---|" * len(found),
    ]

    def row(name: str, cell: Any) -> None:
        lines.append(f"| {name} | " + " | ".join(cell(one) for one in found.values()) + " |")

    row("smaller than float32", lambda one: f"{100 * one['smaller_than_source']:.1f} %")
    row("smaller than bfloat16", lambda one: f"{100 * one['smaller_than_bf16']:.1f} %")
    row("computed by", lambda one: "vLLM" if one["evaluator"] == "vllm" else "emulation")
    row("loses of right next tokens", lambda one: _loss(one["accuracy"]["next_token_loss"]))
    row("loses of right answers", lambda one: _loss(one["accuracy"]["answers_loss"]))
    row("perplexity", lambda one: _loss(one["accuracy"]["perplexity_growth"], "+.1f"))
    row("same likeliest token", lambda one: _loss(one["accuracy"]["agreement"]))
    for number, streams in ((0, "1 stream"), (1, "16 streams")):
        row(f"pace to float32, {streams}", lambda one, n=number: _pace(one["pace"], n))
    lines += ["", f"{seen['texts']} sentences of {seen['tokens']} tokens; {seen['questions']} "]
    lines[-1] += "questions with four answers each, chosen by log-likelihood per byte."
    lines += ["", "## The field's claim: 58 % smaller, at most 3 % lost", ""]
    lines += [_verdict(name, one) for name, one in found.items()]
    return "\n".join(lines) + "\n"


def _loss(value: dict[str, float], form: str = ".1f") -> str:
    middle, low, high = (format(100 * value[part] + 0.0, form) for part in ("value", "low", "high"))
    return f"{middle} % ({low} to {high})"


def _pace(paces: list[dict[str, Any]], number: int) -> str:
    if number >= len(paces):
        return "–"
    ratio = paces[number]["ratio"]
    return f"{ratio['median']:.2f} × ({ratio['least']:.2f} to {ratio['greatest']:.2f})"


def _verdict(name: str, one: dict[str, Any]) -> str:
    small = one["smaller_than_source"] >= CLAIM_SMALLER
    losses = [one["accuracy"][key] for key in ("next_token_loss", "answers_loss")]
    held = all(loss["value"] <= CLAIM_LOSS for loss in losses)
    sure = all(loss["high"] <= CLAIM_LOSS for loss in losses)
    size = "is 58 % smaller than float32" if small else "is less than 58 % smaller than float32"
    if sure:
        loss = "loses at most 3 %"
    elif held:
        loss = "loses at most 3 % as measured, and more cannot be ruled out by so few texts"
    else:
        loss = "loses more than 3 % as measured"
    return f"- `{name}` {size}, not than bfloat16, and {loss}."


def main() -> int:
    """Runs the tool."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", choices=("run", "report"))
    parser.add_argument("--quick", action="store_true", help="one round of pace")
    options = parser.parse_args()
    if options.do == "run":
        run(1 if options.quick else 5)
    found = reports()
    if not found:
        print("nothing was measured: python -m bench.quantize run", file=sys.stderr)
        return 1
    OUT.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    OUT.with_suffix(".md").write_text(page(found), "utf-8")
    print(OUT.with_suffix(".md").relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
