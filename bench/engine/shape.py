"""Writes a model of the 8B Llama shape that has no weights: its configuration, and the tokenizer of
a model that is here. Loaded with load_format=dummy it computes as much as a real one, and nonsense.

    python -m bench.engine.shape .models/smollm2-135m-instruct .build/llama-8b-shape
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

_SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 14336,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "torch_dtype": "bfloat16",
}
_TOKENIZER = ("tokenizer", "special_tokens", "chat_template", "vocab", "merges")
_KEPT = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


def write(source: Path, out: Path) -> None:
    """The model at `out`, with the tokenizer of the one at `source`. Raises OSError."""
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    kept = {name: config[name] for name in _KEPT if name in config}
    (out / "config.json").write_text(json.dumps(_SHAPE | kept, indent=2) + "\n", encoding="utf-8")
    for file in source.iterdir():
        if file.name.startswith(
            ("tokenizer", "special_tokens", "chat_template", "vocab", "merges")
        ):
            shutil.copyfile(file, out / file.name)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write(Path(sys.argv[1]), Path(sys.argv[2]))
