"""Which of vLLM's parsers fits which family of models, and names that it does not know. Pure.

vLLM has a registry of parsers, and says only in its documentation and in their sources whose
output they read. The table holds families whose `model_type` settles it; see
docs/tools-and-reasoning.md, which shows the same table.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class ParserNames(NamedTuple):
    """Names in vLLM's registries; empty for none."""

    tools: str = ""
    reasoning: str = ""


FAMILIES: Mapping[str, ParserNames] = {
    "apertus": ParserNames("apertus"),
    "deepseek_v32": ParserNames("deepseek_v32", "deepseek_v3"),
    "deepseek_v4": ParserNames("deepseek_v4", "deepseek_v4"),
    "ernie4_5_moe": ParserNames("ernie45", "ernie45"),
    "gemma4": ParserNames("gemma4", "gemma4"),
    "glm4_moe": ParserNames("glm45", "glm45"),
    "gpt_oss": ParserNames("openai", "openai_gptoss"),
    "granite": ParserNames("granite", "granite"),
    "granitemoehybrid": ParserNames("granite4"),
    "hunyuan_v1_moe": ParserNames("hunyuan_a13b", "hunyuan_a13b"),
    "internlm2": ParserNames("internlm"),
    "jamba": ParserNames("jamba"),
    "kimi_k2": ParserNames("kimi_k2", "kimi_k2"),
    "lfm2": ParserNames("lfm2"),
    "llama4": ParserNames("llama4_pythonic"),
    "minimax_m2": ParserNames("minimax_m2", "minimax_m2"),
    "mistral": ParserNames("mistral"),
    "mistral3": ParserNames("mistral"),
    "olmo3": ParserNames("olmo3", "olmo3"),
    "qwen2": ParserNames("hermes"),
    "qwen3": ParserNames("hermes", "qwen3"),
    "qwen3_moe": ParserNames("hermes", "qwen3"),
    "qwen3_5": ParserNames("qwen3_coder", "qwen3"),
    "qwen3_5_moe": ParserNames("qwen3_coder", "qwen3"),
    "seed_oss": ParserNames("seed_oss", "seed_oss"),
    "step3p5": ParserNames("step3p5", "step3p5"),
}
"""Parsers by `model_type` of a checkpoint's config.json."""

# What a template writes gives away what the model was taught to write; the first that is found.
_TOOL_MARKS = (
    ("<function=", "qwen3_coder"),
    ("<|python_tag|>", "llama3_json"),
    ("[TOOL_CALLS]", "mistral"),
    ("<tool_call>", "hermes"),
)
_REASONING_MARKS = (("<think>", "deepseek_r1"),)


def evident(model_type: str, template: str) -> ParserNames:
    """The parsers that a model seems to want, by its family or what its chat template writes.

    A template that shows no tools wants no parser for them.
    """
    family = FAMILIES.get(model_type, ParserNames())
    tools = family.tools or _found(template, _TOOL_MARKS)
    reasoning = family.reasoning if "think" in template else ""
    reasoning = reasoning or _found(template, _REASONING_MARKS)
    return ParserNames(tools if "tools" in template else "", reasoning)


def _found(template: str, marks: Sequence[tuple[str, str]]) -> str:
    return next((name for mark, name in marks if mark in template), "")


def check_registered(setting: str, name: str, registered: Sequence[str]) -> None:
    """Raises ValueError, with what was perhaps meant, for a name that is not registered."""
    if not name or name in registered:
        return
    close = difflib.get_close_matches(name, registered, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(
        f"{setting} is {name!r}, which this vLLM does not have{hint} "
        f"It has {', '.join(sorted(registered))}"
    )
