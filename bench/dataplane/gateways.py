"""LiteLLM and SMG as gateways to the same fake engine: what they are started with.

Nothing is started here. Both live in environments of their own below .tools, for they pin what
Anabranch uses in other versions; make setup-bench-litellm and make setup-bench-smg fill them. As
somebody would run them in production, on one worker, and in their favour without keys, budgets,
databases, callbacks and logs of requests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

from bench.dataplane.requests import OPENAI_MODEL, WORDS
from tools.cluster.process import ProcessSpec
from tools.cluster.recipes import ROOT

LITELLM = ROOT / ".tools/litellm"
SMG = ROOT / ".tools/smg"

INSTALL = {
    "envoy": "make setup-bench",
    "nginx": "make setup-bench",
    "litellm": "make setup-bench-litellm",
    "smg": "make setup-bench-smg",
    "smg-grpc": "make setup-bench-smg",
}
"""What installs each proxy that a reader may lack."""

_SLOW_START_S = 120.0


def installed(environment: Path) -> bool:
    """Whether the make goal has filled the environment; it leaves a mark when it is through."""
    return (environment / ".installed").exists()


def version(environment: Path, package: str) -> str | None:
    """The version in that environment; None when it is not installed."""
    if not installed(environment):
        return None
    places = [str(place) for place in environment.glob("lib/python3*/site-packages")]
    found = next(iter(distributions(name=package, path=places)), None)
    return found.version if found else None


def litellm(folder: Path, address: str, engine: str) -> ProcessSpec:
    """LiteLLM's proxy with one worker and one model."""
    config = folder / "litellm.json"
    content = {
        "model_list": [
            {
                "model_name": OPENAI_MODEL,
                "litellm_params": {
                    "model": f"openai/{OPENAI_MODEL}",
                    "api_base": f"http://{engine}/v1",
                    "api_key": "sk-none",
                },
            }
        ],
        "litellm_settings": {"num_retries": 0, "telemetry": False},
    }
    # JSON is YAML, and LiteLLM goes by the name.
    config = config.with_suffix(".yaml")
    config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    host, _, port = address.rpartition(":")
    return ProcessSpec(
        name="litellm",
        argv=(
            *(str(LITELLM / "bin/litellm"), "--config", str(config)),
            *("--host", host, "--port", port, "--num_workers", "1", "--telemetry", "False"),
        ),
        env={
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            # No keys: the less it does, the better it looks.
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
            # Prices come with the package: nothing is fetched at the start.
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            **_direct(),
        },
        probe="http",
        address=address,
        start_timeout=_SLOW_START_S,
        drain=3.0,
    )


def smg(name: str, folder: Path, address: str, worker: str, metrics: str) -> ProcessSpec:
    """SMG in front of one worker, whose URL begins with http:// or grpc://."""
    host, _, port = address.rpartition(":")
    over_grpc = worker.startswith("grpc://")
    mode = (
        ("--backend", "vllm", "--model-path", str(model(folder)))
        if over_grpc
        else ("--backend", "vllm", "--disable-tokenizer-autoload")
    )
    return ProcessSpec(
        name=name,
        argv=(
            *(str(SMG / "bin/smg"), "launch", "--host", host, "--port", port),
            *("--worker-urls", worker, "--policy", "round_robin", *mode),
            *("--max-concurrent-requests", "0", "--log-level", "warn"),
            *("--prometheus-host", host, "--prometheus-port", metrics.rpartition(":")[2]),
            *("--history-backend", "none"),
        ),
        env={"HF_HUB_OFFLINE": "1", **_direct()},
        probe="http",
        address=address,
        start_timeout=60.0,
        drain=3.0,
    )


def smg_worker(folder: Path, address: str) -> ProcessSpec:
    """The fake vLLM worker with SMG's gRPC contract, in SMG's environment."""
    return ProcessSpec(
        name="smg-worker",
        argv=(
            str(SMG / "bin/python"),
            "-m",
            "bench.dataplane.smg_worker",
            address,
            str(model(folder)),
        ),
        env={"PYTHONPATH": str(ROOT)},
        probe="grpc",
        address=address,
        drain=3.0,
    )


def _direct() -> dict[str, str]:
    """A proxy that the machine uses towards the world is none towards itself."""
    return {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}


def model(folder: Path) -> Path:
    """A model folder with a vocabulary of bytes and words, as small as SMG takes it.

    Looking a token up costs the same in a large one; a small one needs no download.
    """
    place = folder / "smg-model"
    place.mkdir(exist_ok=True)
    words = ["<unk>", "<s>", "</s>", *(word.strip() for word in WORDS), *_letters()]
    specials = [
        {
            "id": at,
            "content": words[at],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for at in range(3)
    ]
    files = {
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": specials,
            "pre_tokenizer": {"type": "Whitespace"},
            "decoder": None,
            "model": {
                "type": "WordLevel",
                "vocab": {word: at for at, word in enumerate(words)},
                "unk_token": "<unk>",
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "chat_template": "{% for message in messages %}{{ message.content }}\n{% endfor %}",
        },
        "config.json": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    }
    for name, content in files.items():
        (place / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return place


def _letters() -> Iterator[str]:
    return (chr(code) for code in range(33, 127))
