"""The small model with the words of tool calls and reasoning: a copy that knows their markers.

SmolLM2 was taught none of them. Unused tokens of its vocabulary are renamed to markers, each one
token as in the models that parsers are made for; and the end of reasoning is the word " is", so
that what it says about itself begins as reasoning and goes on as the answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.engines import MODEL

END_OF_REASONING = "</think>"
MARKERS = (
    *("<think>", "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]"),
    *("<tool_response>", "</tool_response>"),
)
_FIRST_FREE = 3
"""SmolLM2's ids 3 to 16 are of its training data's format."""
_WORD = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}is"
"""The token " is", as vocabularies of bytes spell it."""

TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\nTools:\\n' }}
{%- for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor %}
{%- if message.role == 'tool' %}{{ ' from ' + message.name }}{% endif %}{{ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<think>' if enable_thinking is defined and enable_thinking else '</think>' }}
{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
"""Thinks only when it is told to; then the prompt begins the reasoning, before the turn's own head,
where the marker disturbs the model least."""


def write_tool_model(directory: Path) -> Path:
    """Makes the model's directory; its weights are links."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in MODEL.iterdir():
        if file.name not in ("tokenizer.json", "chat_template.jinja"):
            (directory / file.name).symlink_to(file.resolve())
    (directory / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    tokenizer = json.loads((MODEL / "tokenizer.json").read_text("utf-8"))
    _rename(tokenizer)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    return directory


def _rename(tokenizer: dict[str, Any]) -> None:
    model, added = tokenizer["model"], tokenizer["added_tokens"]
    for token in added:
        number = token["id"] - _FIRST_FREE
        if 0 <= number < len(MARKERS):
            token |= {"content": MARKERS[number], "special": False}
    word = model["vocab"][_WORD]
    added.append(added[-1] | {"id": word, "content": END_OF_REASONING, "special": False})
    names = {at: name for name, at in model["vocab"].items()}
    names |= {token["id"]: token["content"] for token in added}
    model["vocab"] = {name: at for at, name in names.items()}
    # Nothing may be merged into, or out of, a token that is gone.
    model["merges"] = [pair for pair in model["merges"] if _WORD not in _merged(pair)]


def _merged(pair: Any) -> tuple[str, ...]:
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return left, right, left + right
