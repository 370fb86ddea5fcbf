"""Whether a LoRA adapter's files, in PEFT's layout, fit a model. Only headers are read.

PEFT: https://huggingface.co/docs/peft/developer_guides/checkpoint. For each module that it adapts
an adapter has two matrices: A of rank by the module's inputs, B of its outputs by rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.local_engine.checkpoint_check import Checkpoint, read_object
from services.local_engine.safetensors_header import BadFile, Tensor, read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MOST_CONFIG_BYTES = 1024 * 1024
_MATRIX = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_REFUSED: Mapping[str, str] = {
    "use_dora": "it is a DoRA adapter, which vLLM does not run",
    "modules_to_save": "it replaces whole modules (modules_to_save), which vLLM does not do",
    "rank_pattern": "its modules have different ranks (rank_pattern)",
    "alpha_pattern": "its modules are scaled differently (alpha_pattern)",
    "layer_replication": "it repeats layers of its model (layer_replication)",
    "lora_bias": "it has biases of its own (lora_bias)",
    "alora_invocation_tokens": "it is an activated LoRA",
}


def check_adapter(directory: Path, *, most_rank: int, base: Checkpoint | None) -> int:
    """The adapter's rank. Without `base` its shapes are only compared with each other.

    Raises BadFile, and OSError for what cannot be read.
    """
    config = read_object(directory / CONFIG, _MOST_CONFIG_BYTES)
    rank = _rank(config, most_rank)
    if not (directory / WEIGHTS).is_file():
        raise BadFile(f"there is no {WEIGHTS}: weights of other kinds are not loaded")
    tensors = read_header(directory / WEIGHTS)
    if not tensors:
        raise BadFile(f"{WEIGHTS} holds no tensor")
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _MATRIX.fullmatch(name)
        if match is None:
            raise BadFile(f"{WEIGHTS} holds {name}, which is no matrix of a LoRA adapter")
        pairs.setdefault(match["module"], {})[match["side"]] = tensor
    for module, sides in pairs.items():
        _check_pair(module, sides, rank, base)
    return rank


def _rank(config: Mapping[str, Any], most: int) -> int:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise BadFile(f"{CONFIG}: it is of the kind {kind}, and only LORA is served")
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise BadFile(f"{CONFIG}: it is for the task {task}, and only CAUSAL_LM is served")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise BadFile(f"{CONFIG}: r must be a whole number from 1 up")
    if type(alpha) not in (int, float):
        raise BadFile(f"{CONFIG}: lora_alpha must be a number")
    if not config.get("target_modules"):
        raise BadFile(f"{CONFIG} has no target_modules")
    if rank > most:
        raise BadFile(
            f"its rank is {rank}, and at most {most} is served (ANABRANCH_ENGINE_MAX_ADAPTER_RANK)"
        )
    if config.get("bias", "none") != "none":
        raise BadFile(f"{CONFIG}: it trains biases, which vLLM does not run")
    for key, why in _REFUSED.items():
        if config.get(key):
            raise BadFile(f"{CONFIG}: {why}")
    return rank


def _check_pair(
    module: str, sides: Mapping[str, Tensor], rank: int, base: Checkpoint | None
) -> None:
    for side in "AB":
        if side not in sides:
            raise BadFile(f"{module} has no matrix lora_{side}")
        if len(sides[side].shape) != 2:
            raise BadFile(f"lora_{side} of {module} is no matrix: {list(sides[side].shape)}")
    (a_rank, inputs), (outputs, b_rank) = sides["A"].shape, sides["B"].shape
    if a_rank != rank or b_rank != rank:
        raise BadFile(
            f"the matrices of {module} have the ranks {a_rank} and {b_rank}, and {CONFIG} says "
            f"{rank}"
        )
    if base is None:
        return
    expected = _shape(module, base)
    if expected is None:
        raise BadFile(f"the model has no {module}: the adapter is of another model")
    if expected != (outputs, inputs):
        raise BadFile(
            f"{module} is {outputs}x{inputs} in the adapter and {expected[0]}x{expected[1]} in the "
            "model: the adapter is of another model"
        )


def _shape(module: str, base: Checkpoint) -> tuple[int, int] | None:
    """Outputs and inputs of a module of the model; None where it has none of that name."""
    weight = base.tensors.get(f"{module}.weight")
    if (
        weight is not None
        and len(weight.shape) == 2
        and f"{module}.weight_scale" not in (base.tensors)
    ):
        return weight.shape[0], weight.shape[1]
    # Quantised weights have shapes of their own: then it is as the configuration says.
    if not any(name.startswith(f"{module}.") for name in base.tensors):
        return None
    return _configured(module.rpartition(".")[2], base.text_config)


def _configured(kind: str, config: Mapping[str, Any]) -> tuple[int, int] | None:
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    inner = config.get("intermediate_size")
    if not (isinstance(hidden, int) and isinstance(heads, int) and heads):
        return None
    head = config.get("head_dim") or hidden // heads
    key_values = (config.get("num_key_value_heads") or heads) * head
    shapes: dict[str, tuple[int, int]] = {
        "q_proj": (heads * head, hidden),
        "k_proj": (key_values, hidden),
        "v_proj": (key_values, hidden),
        "o_proj": (hidden, heads * head),
    }
    if isinstance(inner, int):
        shapes |= {"gate_proj": (inner, hidden), "up_proj": (inner, hidden)}
        shapes["down_proj"] = (hidden, inner)
    return shapes.get(kind)
