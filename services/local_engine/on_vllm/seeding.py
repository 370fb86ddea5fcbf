"""How a seed reaches vLLM, so that an answer resumed elsewhere draws as it would have here.

Pure: does not import vLLM. The draws are vLLM's, or in_core/position_seeds.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum
from typing import Any

_log = logging.getLogger(__name__)

DRAWS = "anabranch_draws"
"""The key in a request's extra arguments under which its draws are described."""

GREEDY_BELOW = 1e-5
"""vLLM takes the most likely token at temperatures below this."""

PROCESSOR = "services.local_engine.on_vllm.in_core.position_seeds:PositionSeeds"

_GOLDEN = 0x9E3779B97F4A7C15
_KEY_BITS = 62  # room for the number of a choice, which vLLM adds to a seed


class Seeding(Enum):
    """What a seeded request's draws are a function of."""

    NATIVE = "vLLM's draws are keyed by seed and position"
    OWN = "in_core/position_seeds.py draws by seed and position"
    COUNTED = "vLLM counts a request's draws: a resumed answer draws others"


def choose(config: Any) -> Seeding:
    """How draws are keyed with this VllmConfig, which is told to load our draws where they serve.

    vLLM's second model runner keys its own draws: read in the sources of 0.25.1 and 0.32.0.
    """
    model = config.model_config
    if getattr(model, "runner_type", "generate") != "generate":
        return Seeding.COUNTED
    drafts = config.speculative_config is not None
    if getattr(config, "use_v2_model_runner", False):
        if drafts:
            _log.info("a seeded answer may draw other tokens where its resumed drafts begin")
        return Seeding.NATIVE
    if drafts:
        return _counted("with speculative decoding vLLM takes no draws but its own")
    if str(getattr(model, "logprobs_mode", "raw_logprobs")).startswith("processed"):
        return _counted("log-probabilities of processed logits would be those of the draws")
    model.logits_processors = [*(getattr(model, "logits_processors", None) or ()), PROCESSOR]
    return Seeding.OWN


def seed_arguments(
    seeding: Seeding, seed: int, existing: int, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Keyword arguments of SamplingParams for a seeded request that goes on after `existing`
    tokens; `arguments` are its others. What is returned replaces them."""
    if seeding is Seeding.COUNTED:
        # A resumed answer must not replay the draws that its beginning was made with.
        return {"seed": (seed + existing * _GOLDEN) & ((1 << 63) - 1)}
    key = _mixed(seed)
    if seeding is Seeding.NATIVE:
        # Existing tokens are part of vLLM's prompt: the positions go on by themselves.
        return {"seed": key}
    top_k = max(0, int(arguments.get("top_k") or 0))
    top_p = float(arguments.get("top_p", 1.0))
    draws = {"seed": key, "first": existing, "top_k": top_k, "top_p": top_p}
    found: dict[str, Any] = {
        "extra_args": {**(arguments.get("extra_args") or {}), DRAWS: draws},
        # Not twice: vLLM would sort the vocabulary of a row that has one token left.
        "top_k": 0,
        "top_p": 1.0,
    }
    if arguments.get("n", 1) > 1:
        found["seed"] = key  # tells the choices apart
    return found


def _mixed(seed: int) -> int:
    """A key for a seed, so that a choice of one seed is no choice of the next.

    The finalizer of SplitMix64: G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom
    number generators", OOPSLA 2014.
    """
    mask = (1 << 64) - 1
    z = (seed + _GOLDEN) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> (64 - _KEY_BITS)


def _counted(why: str) -> Seeding:
    _log.info("a seeded answer that is resumed draws other tokens", extra={"cause": why})
    return Seeding.COUNTED
