"""What draws by position cost a step, beside vLLM's own limits and seeded sampling in PyTorch.

    python -m bench.engine_draws [--device cuda] [--rows 1 8 64]

Time of whole calls on random logits, medians of alternating runs. On a CPU it is processor time of
one thread; on a GPU, wall time until the device is done. It starts no engine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from services.local_engine.on_vllm.in_core.exponential_race import Draw, draw

VOCABULARIES = (49_152, 128_256)
LIMITS = {"none": (0, 1.0), "top-k 50, top-p 0.9": (50, 0.9), "top-p 0.9": (0, 0.9)}
RUNS = 9


def _milliseconds(device: str, work: Callable[[], Any]) -> float:
    if device == "cpu":
        started = time.process_time()
        work()
        return (time.process_time() - started) * 1e3
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e3


def _vllm(logits: torch.Tensor, top_k: int, top_p: float) -> Callable[[], Any]:
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p, random_sample

    rows, device = len(logits), logits.device
    k = torch.full((rows,), top_k, dtype=torch.int32, device=device) if top_k else None
    p = torch.full((rows,), top_p, device=device) if top_p < 1.0 else None
    generators = {n: torch.Generator(device=device).manual_seed(n) for n in range(rows)}

    def work() -> Any:
        left = apply_top_k_top_p(logits.clone(), None if k is None else k.clone(), p)
        return random_sample(left.softmax(dim=-1, dtype=torch.float32), generators)

    return work


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    print("| vocabulary | limits | rows | ours, ms a row | vLLM's, ms a row |")
    print("|---|---|---|---|---|")
    for vocabulary in VOCABULARIES:
        for name, (top_k, top_p) in LIMITS.items():
            for rows in options.rows:
                logits = torch.randn(rows, vocabulary, device=options.device) * 3
                draws = [Draw(n, 0, n, top_k, top_p) for n in range(rows)]

                def ours(logits: torch.Tensor = logits, draws: list[Draw] = draws) -> Any:
                    return draw(logits, draws)

                theirs = _vllm(logits, top_k, top_p)
                times: dict[str, list[float]] = {"ours": [], "theirs": []}
                for _ in range(RUNS):
                    times["ours"].append(_milliseconds(options.device, ours))
                    times["theirs"].append(_milliseconds(options.device, theirs))
                told = [statistics.median(found[2:]) / rows for found in times.values()]
                print(f"| {vocabulary} | {name} | {rows} | {told[0]:.2f} | {told[1]:.2f} |")


if __name__ == "__main__":
    main()
