"""What vLLM itself answers, offline: `python -m tests.support.offline MODEL < cases > answers`.

A case is an object with `prompt_token_ids`, `prompt` or `messages`, and vLLM's sampling parameters
in `params`. `stop_from` names an earlier case, out of whose answer a stop string is cut that begins
and ends within tokens. Answers are by the case's name.
"""

from __future__ import annotations

import json
import sys
from typing import Any

CONTEXT = 1024
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # more of them spin, and stall where cores are shared
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
"""What the process is to be started with; as the engine's own."""


def _answers(model: str, cases: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    llm = LLM(model, dtype="float32", enforce_eager=True, max_model_len=CONTEXT, max_logprobs=21)
    tokenizer = llm.get_tokenizer()
    answers: dict[str, Any] = {}
    for derived in (False, True):
        chosen = {name: case for name, case in cases.items() if ("stop_from" in case) == derived}
        prompts, params, stops = [], [], []
        for case in chosen.values():
            prompts.append({"prompt_token_ids": _prompt(tokenizer, case)})
            stop = ""
            if derived:
                text = answers[case["stop_from"]]["texts"][0]
                stop = text[len(text) // 2 - 3 : len(text) // 2 + 4]
            asked = {"temperature": 0.0} | case.get("params", {})
            params.append(SamplingParams(**asked, **({"stop": [stop]} if stop else {})))
            stops.append(stop)
        if not prompts:
            continue
        for name, stop, found in zip(
            chosen, stops, llm.generate(prompts, params, use_tqdm=False), strict=True
        ):
            answers[name] = _answer(found, stop)
    return answers


def _prompt(tokenizer: Any, case: dict[str, Any]) -> list[int]:
    if "messages" in case:
        made = tokenizer.apply_chat_template(
            case["messages"], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return list(made)
    if "prompt" in case:
        return list(tokenizer.encode(case["prompt"]))
    return list(case["prompt_token_ids"])


def _answer(found: Any, stop: str) -> dict[str, Any]:
    outputs = sorted(found.outputs, key=lambda each: each.index)
    return {
        "prompt": list(found.prompt_token_ids),
        "stop": stop,
        "tokens": [list(each.token_ids) for each in outputs],
        "texts": [each.text for each in outputs],
        "finish": [each.finish_reason for each in outputs],
        "logprobs": [
            [
                {number: entry.logprob for number, entry in row.items()}
                for row in each.logprobs or ()
            ]
            for each in outputs
        ],
    }


if __name__ == "__main__":
    json.dump(_answers(sys.argv[1], json.load(sys.stdin)), sys.stdout)
