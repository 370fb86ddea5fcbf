"""A process that answers prompts with vllm.LLM one by one and ends: what engines are held against.

Reads one JSON value from stdin, `arguments` of vllm.LLM, `prompts` as token ids and `tokens`, and
writes the answers' token ids as one line.
"""

from __future__ import annotations

import json
import sys

from bench.engine.worker import own_stdout


def main() -> int:
    answer = own_stdout()
    order = json.load(sys.stdin)
    from vllm import LLM, SamplingParams

    llm = LLM(**order["arguments"])
    params = SamplingParams(max_tokens=order["tokens"], temperature=0.0, ignore_eos=True)
    found = []
    for prompt in order["prompts"]:
        (output,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        found.append(list(output.outputs[0].token_ids))
    answer({"answers": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
