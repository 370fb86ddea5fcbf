"""How vLLM stores weights and cache, spreads over devices and guesses ahead. Pure: values only.

What a certain vLLM on a certain machine has of it is for checks.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DRAFTED = frozenset({"draft_model", "eagle", "eagle3", "medusa", "mlp_speculator"})
"""Methods that guess with weights of their own."""

TUNING_ARGUMENTS = frozenset(
    {
        *("block_size", "cpu_offload_gb", "data_parallel_size", "enable_prefix_caching"),
        *("kv_cache_dtype", "kv_offloading_size", "load_format", "speculative_config", "tokenizer"),
    }
)
"""Arguments of vLLM that `tuning_arguments` may give."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """Zero and empty mean vLLM's own choice. Sizes in GiB are for each GPU."""

    kv_cache_dtype: str = ""
    """What keys and values are stored as, by vLLM's name."""
    cpu_offload_gib: float = 0.0
    """Weights that stay in the machine's memory."""
    kv_offload_gib: float = 0.0
    """Memory of the machine that blocks of the KV cache move to."""
    data_parallel_size: int = 1
    """Engine cores, each with all weights and a cache of its own."""
    speculative: Mapping[str, Any] = field(default_factory=dict)
    """vLLM's speculative_config, as `speculation` checks it."""
    load_format: str = ""
    tokenizer: str = ""
    """A tokenizer other than the one beside the weights."""
    prefix_caching: bool = True
    block_size: int = 0
    """Tokens in a block of the KV cache."""

    @property
    def tokens_per_decode(self) -> int:
        """Tokens that a running sequence computes in a step: its next and those guessed."""
        return 1 + int(self.speculative.get("num_speculative_tokens", 0))

    @property
    def tells_cache(self) -> bool:
        """Whether one prefix cache exists, whose events name what it holds."""
        return self.prefix_caching and self.data_parallel_size == 1


def tuning_arguments(tuning: Tuning) -> dict[str, Any]:
    """Keyword arguments of AsyncEngineArgs: those that are not vLLM's own choice."""
    arguments: dict[str, Any] = {
        "kv_cache_dtype": tuning.kv_cache_dtype,
        "cpu_offload_gb": tuning.cpu_offload_gib,
        "kv_offloading_size": tuning.kv_offload_gib,
        "speculative_config": dict(tuning.speculative),
        "load_format": tuning.load_format,
        "tokenizer": tuning.tokenizer,
        "block_size": tuning.block_size,
    }
    arguments = {name: value for name, value in arguments.items() if value}
    if tuning.data_parallel_size > 1:
        arguments["data_parallel_size"] = tuning.data_parallel_size
    if not tuning.prefix_caching:
        arguments["enable_prefix_caching"] = False
    return arguments


def speculation(text: str) -> dict[str, Any]:
    """vLLM's speculative_config from a JSON object; none from an empty text. Raises ValueError."""
    if not text.strip():
        return {}
    example = '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}'
    try:
        found = json.loads(text)
    except json.JSONDecodeError as wrong:
        raise ValueError(f"is no JSON: {wrong}") from None
    if not isinstance(found, dict):
        raise ValueError(f"must be a JSON object, such as {example}")
    method = found.get("method")
    if not isinstance(method, str) or not method:
        raise ValueError(f"must name a method, as in {example}")
    if not _is_count(found.get("num_speculative_tokens")):
        raise ValueError("must say how many tokens to guess: num_speculative_tokens, at least 1")
    if method in DRAFTED and not found.get("model"):
        raise ValueError(f"must name the model that method {method} guesses with, as model")
    if method == "ngram":
        _check_lookup(found)
    return found


def _check_lookup(found: Mapping[str, Any]) -> None:
    if "model" in found:
        raise ValueError("may not name a model: method ngram guesses from the text itself")
    least, most = found.get("prompt_lookup_min", 1), found.get("prompt_lookup_max", 1)
    if not _is_count(least) or not _is_count(most):
        raise ValueError("needs prompt_lookup_min and prompt_lookup_max of at least 1 token")
    both = "prompt_lookup_min" in found and "prompt_lookup_max" in found
    if both and least > most:
        raise ValueError("has a prompt_lookup_min above its prompt_lookup_max")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
