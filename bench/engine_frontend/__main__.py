"""`python -m bench.engine_frontend`: the CPU that a token costs in front of vLLM's engine core.

No model computes: a stand-in hands on a token for each stream and step, in the bytes of vLLM's own
engine core, so the process in front of it is all that is measured. What the core and this process
share on a real machine, the memory and the caches, it cannot show.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import statistics
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from unittest import mock

import uvloop
from transformers import AutoTokenizer
from vllm import __version__ as vllm_version
from vllm.v1.engine.core_client import EngineCoreClient

from bench.engine_frontend import ways
from bench.engine_frontend.core import SyntheticCore
from services.local_engine.on_vllm.outputs import TappedOutputs

ROOT = Path(__file__).resolve().parents[2]
_TAPPED = {"outputs": lambda llm, version: TappedOutputs(llm)}

WAYS: dict[str, Callable[[str, SyntheticCore, ways.Load], Awaitable[None]]] = {
    "AsyncLLM, a task a request": ways.async_llm,
    "… and vLLM's completions events": ways.openai,
    "jobs, vLLM's outputs": ways.jobs(**_TAPPED),
    "service, vLLM's outputs": ways.handler(**_TAPPED),
    "session, vLLM's outputs": ways.session(**_TAPPED),
    "jobs": ways.jobs(),
    "service": ways.handler(),
    "session": ways.session(),
}


@dataclass(frozen=True, slots=True)
class Figures:
    """µs of CPU: a request until the core has it, its first token, and each token from then on."""

    begin: float
    first: float
    token: float


def measure(name: str, load: ways.Load, model: str, words: list[int]) -> Figures:
    """One run of a way. A token's is the median of the full steps after the second."""
    core: SyntheticCore | None = None

    def make(**_: object) -> SyntheticCore:
        nonlocal core
        core = core or SyntheticCore(words)
        return core

    async def run() -> None:
        await WAYS[name](model, make(), load)

    with mock.patch.object(EngineCoreClient, "make_async_mp_client", make):
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    core = make()
    first, *steps = [step for step in core.steps if step.tokens == load.streams][:-1]
    return Figures(
        core.beginning / load.streams * 1e6,
        first.seconds / first.tokens * 1e6,
        statistics.median(step.seconds / step.tokens for step in steps[1:]) * 1e6,
    )


def _cell(runs: Sequence[Figures], field: str) -> str:
    values = [getattr(run, field) for run in runs]
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> int:
    """Prints a table; 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine_frontend", description=__doc__)
    parser.add_argument("--model", default=str(ROOT / ".models/smollm2-135m-instruct"))
    parser.add_argument("--streams", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=96, help="of each answer")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="ways whose name contains this")
    parser.add_argument("--json", type=Path, help="also write every round's figures here")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    text = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
    words = tokenizer.encode(text, add_special_tokens=False)[:8192]
    load = ways.Load(options.streams, options.tokens, words[: options.prompt])
    names = [name for name in WAYS if options.only in name]
    found: dict[str, list[Figures]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            found[name].append(measure(name, load, options.model, words))
    print(f"vLLM {vllm_version}, {load.streams} streams, {options.rounds} rounds")
    print("µs of CPU, median (least to most)     a request begun         first token       a token")
    for name in names:
        cells = [_cell(found[name], field.name) for field in fields(Figures)]
        print(f"{name:30}" + "".join(f"{cell:>22}" for cell in cells))
    if options.json:
        rows = {name: [asdict(figures) for figures in found[name]] for name in names}
        about = {"vllm": vllm_version, "streams": load.streams, "tokens": load.tokens}
        options.json.write_text(json.dumps({**about, "ways": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
