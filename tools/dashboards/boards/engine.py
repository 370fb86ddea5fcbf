"""The local engines: what runs, how full and how fast they are, and vLLM's own figures."""

from __future__ import annotations

from tools.dashboards.boards.common import (
    NAMESPACE,
    PROCESS,
    instances,
    process_row,
    quantiles,
    rate,
    slowest,
)
from tools.dashboards.panels import Board, Kind, Panel, Query, Row, Variable, one

_MODEL = f'{PROCESS}, gen_ai_request_model=~"$model"'
_VLLM = f'{PROCESS}, model_name=~"$model"'


def _of(name: str, by: str = "instance") -> str:
    return f"max by ({by}) (anabranch_engine_{name}{{{PROCESS}}})"


_BATCH = Row(
    "Batch",
    (
        Panel(
            "Running",
            "Requests in the batch, and how many it may hold (`most`). "
            "At the bound the router sends to others, then to the cloud, then lets wait.",
            (
                Query(_of("running"), "{{instance}}"),
                Query(_of("max_running"), "most {{instance}}"),
            ),
        ),
        Panel(
            "Waiting",
            "Taken and not begun. The router keeps this near 0.",
            one(_of("waiting"), "{{instance}}"),
            "short",
        ),
        Panel(
            "KV cache in use",
            "Share of the cache that holds running requests. When full, requests are interrupted "
            "and computed again: add an engine, or lower MAX_NUM_SEQS.",
            one(f"{_of('kv_used_tokens')} / {_of('kv_total_tokens')}", "{{instance}}"),
            "percentunit",
            alerts=("AnabranchKvCacheFull",),
            highest=1,
        ),
        Panel(
            "Output",
            "Tokens generated in a second. It falls with long contexts; it falling with the same "
            "load is a slow engine.",
            one(_of("output_tokens_per_second"), "{{instance}}"),
            "suffix: tok/s",
        ),
        Panel(
            "Step time against the expected",
            "1: as fast as it should be for its batch. Above the line: `nvidia-smi -q -d "
            "PERFORMANCE` on the node (throttling), other processes on the GPU, CPU of the host.",
            one(_of("step_time_ratio"), "{{instance}}"),
            "suffix: x",
            alerts=("AnabranchEngineSlow",),
        ),
        Panel(
            "Since the last step ended",
            "0 while nothing runs. Above a few seconds the engine hangs: after a minute it is "
            "neither ready nor alive, after two the process ends itself.",
            one(_of("heartbeat_age_seconds"), "{{instance}}"),
            "s",
        ),
    ),
)

_TIMES = Row(
    "What requests see",
    (
        Panel(
            "Time to the first token",
            "In the engine alone. Late here: long prompts, a full batch. Early here and late at "
            "the router: requests wait in line.",
            quantiles("gen_ai_server_time_to_first_token_seconds", _MODEL),
            "s",
        ),
        Panel(
            "Time per output token, 99th percentile",
            "Grows with the batch. Above what readers accept: set `objectives.tpot` in the policy.",
            one(
                slowest(
                    "gen_ai_server_time_per_output_token_seconds", _MODEL, "gen_ai_request_model"
                ),
                "{{gen_ai_request_model}}",
            ),
            "s",
        ),
        Panel(
            "Requests by end",
            "ok, cancelled (the caller left, or the router went on elsewhere), error (the log of "
            "the engine says why).",
            (
                Query(
                    rate(
                        "gen_ai_server_request_duration_seconds_count", f'{_MODEL}, error_type=""'
                    ),
                    "ok",
                ),
                Query(
                    rate(
                        "gen_ai_server_request_duration_seconds_count",
                        f'{_MODEL}, error_type!=""',
                        "error_type",
                    ),
                    "{{error_type}}",
                ),
            ),
            "reqps",
            Kind.STACK,
            colours={"ok": "green", "error": "red", "cancelled": "orange"},
        ),
    ),
)

_HEALTH = Row(
    "Health",
    (
        Panel(
            "State",
            "hangs: requests run and no step ends. Kept for 5 minutes, so that it is seen.",
            one(
                f"max by (instance) (max_over_time(anabranch_engine_hung{{{PROCESS}}}[5m]))",
                "{{instance}}",
            ),
            "short",
            Kind.NUMBER,
            ("AnabranchEngineHung",),
            width=24,
            height=4,
            words={0: ("works", "green"), 1: ("hangs", "red")},
        ),
    ),
)

_NATIVE = Row(
    "vLLM's own figures",
    (
        Panel(
            "Running and waiting",
            "vLLM's scheduler: what it runs, what it holds back.",
            (
                Query(
                    f"sum by (instance) (vllm:num_requests_running{{{_VLLM}}})",
                    "running {{instance}}",
                ),
                Query(
                    f"sum by (instance) (vllm:num_requests_waiting{{{_VLLM}}})",
                    "waiting {{instance}}",
                ),
            ),
        ),
        Panel(
            "Interrupted requests",
            "Preemptions: the KV cache was full, so a request lost its place and is computed "
            "again.",
            one(rate("vllm:num_preemptions_total", _VLLM, "instance"), "{{instance}}"),
            "ops",
        ),
        Panel(
            "Prefix cache",
            "Share of prompt tokens that need not be computed. Low with chats: is affinity on, do "
            "prompts begin alike?",
            one(
                f"{rate('vllm:prefix_cache_hits_total', _VLLM, 'instance')} / "
                f"{rate('vllm:prefix_cache_queries_total', _VLLM, 'instance')}",
                "{{instance}}",
            ),
            "percentunit",
            highest=1,
        ),
        Panel(
            "KV cache",
            "As vLLM counts it.",
            one(f"max by (instance) (vllm:kv_cache_usage_perc{{{_VLLM}}})", "{{instance}}"),
            "percentunit",
            highest=1,
        ),
        Panel(
            "Tokens",
            "Prompt tokens taken in and tokens generated.",
            (
                Query(rate("vllm:prompt_tokens_total", _VLLM), "prompt"),
                Query(rate("vllm:generation_tokens_total", _VLLM), "generated"),
            ),
            "suffix: tok/s",
        ),
        Panel(
            "Time between tokens",
            "From one token to the next, as vLLM measures it.",
            quantiles("vllm:inter_token_latency_seconds", _VLLM),
            "s",
        ),
    ),
)

ENGINE = Board(
    "engine",
    "Anabranch / Engine",
    "What local engines run, how full and how fast they are.",
    (
        NAMESPACE,
        instances("anabranch-engine"),
        Variable(
            "model",
            f"gen_ai_server_request_duration_seconds_count{{{PROCESS}}}",
            "gen_ai_request_model",
        ),
    ),
    (_BATCH, _TIMES, _HEALTH, _NATIVE, process_row()),
)
