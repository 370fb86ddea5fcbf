"""What vLLM itself answers offline to prompts with images: run as a program, in its own process.

Reads {"model", "cases": [{"prompt", "images" (base64), "tokens"}]} and writes, for each case, its
prompt's length, the answer's token ids and the first one's log-probability.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.local_engine.on_vllm import options as vllm_options


def ask_vllm(model: Path, cases: Sequence[tuple[str, Sequence[bytes], int]]) -> list[Any]:
    """Each case is a prompt, its images and how many tokens to answer."""
    asked = {
        "model": str(model),
        "cases": [
            {
                "prompt": prompt,
                "images": [base64.b64encode(data).decode() for data in images],
                "tokens": tokens,
            }
            for prompt, images, tokens in cases
        ],
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.vision_reference"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Answers on stdout, in its last line."""
    import os

    asked = json.loads(sys.stdin.read())
    options = vllm_options.VllmOptions(asked["model"], "reference", kv_cache_gib=1, max_num_seqs=8)
    os.environ |= vllm_options.process_variables(options)
    os.environ |= vllm_options.cpu_variables(options)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # all in this process: a quicker start

    import vllm
    from PIL import Image

    llm = vllm.LLM(
        asked["model"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=8,
        limit_mm_per_prompt={"image": 3},
        distributed_executor_backend="uni",
    )
    answers = []
    for case in asked["cases"]:
        data = [io.BytesIO(base64.b64decode(image)) for image in case["images"]]
        prompt: Any = {"prompt": case["prompt"]}
        if data:
            images = [Image.open(file).convert("RGB") for file in data]
            prompt["multi_modal_data"] = {"image": images}
        sampling = vllm.SamplingParams(
            temperature=0.0, max_tokens=case["tokens"], ignore_eos=True, logprobs=1
        )
        (answer,) = llm.generate(prompt, sampling, use_tqdm=False)
        output = answer.outputs[0]
        first = output.logprobs[0][output.token_ids[0]].logprob
        answers.append([len(answer.prompt_token_ids), list(output.token_ids), first])
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
