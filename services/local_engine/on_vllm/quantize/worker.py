"""A process with one model: scores texts, and generates as fast as it can. One request a line.

    python -m services.local_engine.on_vllm.quantize.worker '{"model": "DIR", "with": "vllm", …}'

Reads requests as JSON from standard input and answers each with a line of JSON on what was its
standard output; whatever the libraries print goes to standard error. Ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

_STREAM_SEED = "Tell me something about the number {}."


class _Model(Protocol):
    def encode(self, text: str) -> list[int]: ...

    def scored(self, prompts: Sequence[list[int]]) -> list[tuple[list[float], list[int]]]:
        """For each prompt: the log-probability of every token after its first, and the token
        that was likeliest in its place."""

    def generate(self, prompts: Sequence[list[int]], tokens: int) -> int:
        """Generates so many tokens for each, all at once; returns how many there were."""


class _Vllm:
    """vLLM itself, as the engine would load the checkpoint."""

    def __init__(self, model: str, dtype: str, share: float, eager: bool) -> None:
        from services.local_engine.on_vllm.options import (
            VllmOptions,
            cpu_variables,
            process_variables,
        )

        options = VllmOptions(model, "measured", max_num_seqs=64, kv_cache_gib=1)
        _set_variables(process_variables(options))
        import vllm
        from vllm.platforms import current_platform

        more: dict[str, Any] = {"enforce_eager": eager}
        if current_platform.is_cpu():
            from vllm.v1.executor.uniproc_executor import UniProcExecutor

            _set_variables(cpu_variables(options))
            more = {"enforce_eager": True, "distributed_executor_backend": UniProcExecutor}
            dtype = "float32" if dtype == "auto" else dtype
        self._vllm = vllm
        self._llm = vllm.LLM(
            model=model,
            dtype=dtype,
            max_model_len=2048,
            max_num_seqs=64,
            gpu_memory_utilization=share,
            enable_prefix_caching=False,
            seed=0,
            **more,
        )
        self._tokenizer = self._llm.get_tokenizer()

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text))

    def scored(self, prompts: Sequence[list[int]]) -> list[tuple[list[float], list[int]]]:
        params = self._vllm.SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1)
        outputs = self._run(prompts, params)
        scores = []
        for prompt, output in zip(prompts, outputs, strict=True):
            rows = list(output.prompt_logprobs)[1:]
            own = [row[token].logprob for row, token in zip(rows, prompt[1:], strict=True)]
            best = [next(t for t, found in row.items() if found.rank == 1) for row in rows]
            scores.append((own, best))
        return scores

    def generate(self, prompts: Sequence[list[int]], tokens: int) -> int:
        params = self._vllm.SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        return sum(len(output.outputs[0].token_ids) for output in self._run(prompts, params))

    def _run(self, prompts: Sequence[list[int]], params: Any) -> list[Any]:
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        return list(self._llm.generate(asked, params, use_tqdm=False))


class _Transformers:
    """The model in PyTorch's own arithmetic: 8-bit numbers are emulated, so it has no pace."""

    def __init__(self, model: str, dtype: str) -> None:
        import torch
        import transformers

        self._torch = torch
        kind = torch.float32 if dtype == "auto" else getattr(torch, dtype)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=kind).eval()

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text))

    def scored(self, prompts: Sequence[list[int]]) -> list[tuple[list[float], list[int]]]:
        torch, scores = self._torch, []
        with torch.inference_mode():
            for prompt in prompts:
                logits = self._model(torch.tensor([prompt])).logits[0, :-1]
                table = torch.log_softmax(logits.float(), dim=-1)
                own = table.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
                scores.append((own.tolist(), table.argmax(dim=-1).tolist()))
        return scores

    def generate(self, prompts: Sequence[list[int]], tokens: int) -> int:
        raise NotImplementedError("emulated arithmetic has no pace")


def score(model: _Model, request: Mapping[str, Any]) -> dict[str, Any]:
    """Scores `texts`, and for each of `questions` every one of its answers."""
    texts = [model.encode(text) for text in request["texts"]]
    starts: list[int] = []
    prompts: list[list[int]] = []
    for asked in request["questions"]:
        stem = f"Question: {asked['question']}\nAnswer:"
        for answer in (asked["right"], *asked["wrong"]):
            whole, alone = model.encode(f"{stem} {answer}"), model.encode(stem)
            common = next(
                (n for n, (a, b) in enumerate(zip(whole, alone, strict=False)) if a != b),
                min(len(whole), len(alone)),
            )
            starts.append(common)
            prompts.append(whole)
    results = model.scored([*texts, *prompts])
    answers = [
        sum(own[start - 1 :]) for (own, _), start in zip(results[len(texts) :], starts, strict=True)
    ]
    return {
        "texts": [
            {"logprobs": own, "tokens": prompt[1:], "likeliest": best}
            for prompt, (own, best) in zip(texts, results, strict=False)
        ],
        "answers": answers,
    }


def pace(model: _Model, request: Mapping[str, Any]) -> dict[str, Any]:
    """Generates `tokens` on each of `streams`; seconds are of that alone."""
    prompts = [model.encode(_STREAM_SEED.format(n)) for n in range(request["streams"])]
    started = time.perf_counter()
    made = model.generate(prompts, request["tokens"])
    return {"tokens": made, "seconds": time.perf_counter() - started}


def main(arguments: Mapping[str, Any]) -> None:
    """Loads the model, then answers until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    where, dtype = str(arguments["model"]), str(arguments["dtype"])
    model: _Model
    if arguments["with"] == "vllm":
        model = _Vllm(where, dtype, float(arguments["share"]), bool(arguments["eager"]))
    else:
        model = _Transformers(where, dtype)
    answer({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        answer(score(model, request) if request["do"] == "score" else pace(model, request))


def _set_variables(variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
