"""The options of a run, and the plan that follows from them on this machine."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path as FilePath

from bench.engine import circumstances
from bench.engine.plan import Model, Objective, Path, Plan
from services.local_engine.simulation.tokenizer import VOCABULARY
from tools.cluster.recipes import MODEL_PATH

_GPU_STREAMS, _CPU_STREAMS = (1, 64, 256, 512), (1, 16, 64)
_UNKNOWN_VOCABULARY = 30_000
"""Token ids that a model has whose configuration is not at hand."""

_MANY_CORES = 8


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of `run`."""
    what = parser.add_argument_group("what is measured")
    what.add_argument("--quick", action="store_true", help="few streams, 1 round: proves nothing")
    what.add_argument(
        "--paths", type=Path, nargs="+", metavar="PATH", help="of the five above (default: all)"
    )
    what.add_argument("--streams", type=int, nargs="+", help="default: 1 64 256 512; CPU: 1 16 64")
    what.add_argument("--rounds", type=int, help="looks at each path and number of streams (5)")
    what.add_argument("--cancels", type=int, default=3, help="times that streams are cancelled (3)")
    what.add_argument("--asks", type=int, help="requests a stream, one by one (2; CPU: 1)")
    what.add_argument("--prompt-tokens", type=int, help="of a request (64; CPU: 32)")
    what.add_argument("--output-tokens", type=int, help="of a request (256; CPU: 48)")
    what.add_argument("--ttft-slo", type=float, help="seconds, for goodput (0.5; CPU: 5)")
    what.add_argument("--tpot-slo", type=float, help="seconds, for goodput (0.03; CPU: 0.5)")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--order", choices=("alternate", "in-turn"), default="alternate", help="see above"
    )
    how.add_argument(
        "--budget", type=float, default=0.0, help="begin no look after so many seconds"
    )
    how.add_argument(
        "--together",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="alternate: start all engines at once. On a GPU each then needs a KV cache of a given "
        "size, --vllm-args '{\"kv_cache_memory_bytes\": 8000000000}': what vLLM finds free while "
        "others start is not what it can have",
    )
    how.add_argument("--clients", type=int, help="caller processes over HTTP (8; few cores: 1)")
    how.add_argument("--session-clients", type=int, help="caller processes with a session (2; 1)")
    how.add_argument("--device", choices=("gpu", "cpu"), help="default: what is found here")
    model = parser.add_argument_group("the model, the same for every path")
    model.add_argument("--model", default=str(MODEL_PATH), help="directory, or Hugging Face name")
    model.add_argument("--dtype", help="default: bfloat16; CPU: float32")
    model.add_argument("--max-model-len", type=int, default=1024)
    model.add_argument("--max-num-batched-tokens", type=int, help="of a step (GPU: 8192)")
    model.add_argument(
        "--gpu-memory-utilization", type=float, help="of each engine (0.9; alternating: 0.2)"
    )
    model.add_argument("--cpu-kv-cache-gib", type=int, default=1)
    model.add_argument("--load-format", default="", help="dummy: weights are made up")
    model.add_argument("--vllm-args", type=json.loads, default={}, help="more, as a JSON object")
    model.add_argument(
        "--simulated", action="store_true", help="no model: the simulated engine, without vLLM"
    )


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan of a run on this machine."""
    device = options.device or ("gpu" if circumstances.gpu() else "cpu")
    gpu = device == "gpu"
    many = (os.cpu_count() or 1) >= _MANY_CORES
    streams = tuple(options.streams or (_GPU_STREAMS if gpu else _CPU_STREAMS))
    rounds = options.rounds or 5
    if options.quick:
        streams = tuple(options.streams or streams[:2])
        rounds = options.rounds or 1
    alternate = options.order == "alternate"
    paths = tuple(options.paths or Path)
    if options.simulated:
        paths = tuple(path for path in paths if path in (Path.SESSION, Path.ROUTER))
    return Plan(
        model=Model(
            path=options.model,
            dtype=options.dtype or ("bfloat16" if gpu else "float32"),
            max_model_len=options.max_model_len,
            max_num_batched_tokens=options.max_num_batched_tokens or (8192 if gpu else 0),
            gpu_memory_utilization=options.gpu_memory_utilization or (0.2 if alternate else 0.9),
            kv_cache_gib=options.cpu_kv_cache_gib,
            load_format=options.load_format,
            further=options.vllm_args,
            simulated=options.simulated,
        ),
        device=device,
        paths=paths,
        streams=streams,
        rounds=rounds,
        prompt_tokens=options.prompt_tokens or (64 if gpu else 32),
        output_tokens=options.output_tokens or (256 if gpu else 16 if options.quick else 48),
        objective=Objective(
            options.ttft_slo or (0.5 if gpu else 5.0), options.tpot_slo or (0.03 if gpu else 0.5)
        ),
        clients=options.clients or (8 if many else 1),
        session_clients=options.session_clients or (2 if many else 1),
        alternate=alternate,
        together=options.together,
        cancels=options.cancels,
        budget=options.budget,
        asks=options.asks or (2 if gpu and not options.quick else 1),
    )


def vocabulary_of(model: Model) -> int:
    """Token ids that the model has, at least."""
    if model.simulated:
        return VOCABULARY
    file = FilePath(model.path) / "config.json"
    if not file.exists():
        return _UNKNOWN_VOCABULARY
    return int(json.loads(file.read_text(encoding="utf-8"))["vocab_size"])
