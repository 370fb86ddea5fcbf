"""What a model's chat template is given beside the turns: tools, and whether to think. Pure.

Which arguments a template understands is read off its text. Reading and rendering templates is
chat_tokenizer's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.local_engine.chat_turns import tool_entries, unsupported

MAX_TEMPLATE_BYTES = 1 << 20
"""The largest file that is read as a chat template; the longest in use have 30 KB."""

TOOLS_OFF = (
    "this model is not set up to call tools: "
    "its operator can name a parser with ANABRANCH_ENGINE_TOOL_PARSER"
)

# A plain word may also stand in the template's text; these are its places in an expression.
_SWITCHES = {
    "enable_thinking": re.compile(r"\benable_thinking\b"),
    "thinking": re.compile(r"(?:\b(?:if|elif|not|and|or)\s+\(?thinking\b|\bthinking\s+is\b)"),
}
_GRADED = re.compile(r"\breasoning_effort\b")
_GRADED_OFF = re.compile(r"""reasoning_effort[^%}]*['"]none['"]""")
_TOOLS = re.compile(r"\btools\b")
_EFFORTS: Mapping[int, str] = {
    pb.REASONING_EFFORT_NONE: "none",
    pb.REASONING_EFFORT_LOW: "low",
    pb.REASONING_EFFORT_MEDIUM: "medium",
    pb.REASONING_EFFORT_HIGH: "high",
}


def read_template(path: str) -> str:
    """The text of a chat template's file. Raises ValueError for one that cannot be used."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_TEMPLATE_BYTES + 1)
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as wrong:
        raise ValueError(f"the chat template {path} cannot be read: {wrong}") from None
    if len(raw) > MAX_TEMPLATE_BYTES:
        raise ValueError(f"the chat template {path} has more than {MAX_TEMPLATE_BYTES} bytes")
    if not text.strip():
        raise ValueError(f"the chat template {path} is empty")
    return text


def template_text(tokenizer: Any) -> str:
    """A tokenizer's own templates, joined where it has several; empty where it has none."""
    own = getattr(tokenizer, "chat_template", None)
    return "\n".join(map(str, own.values())) if isinstance(own, Mapping) else str(own or "")


class ChatFormat:
    """What requests ask of a template, as its arguments.

    `override` replaces the tokenizer's own template, whose text is `text` else. `tools` and
    `reasoning` say whether the model is set up for them.
    """

    def __init__(
        self, text: str, *, override: str = "", tools: bool = False, reasoning: bool = False
    ) -> None:
        self._text = override or text
        self._override = override
        self.tools = tools
        self._reasoning = reasoning
        self._switches = tuple(name for name, use in _SWITCHES.items() if use.search(self._text))
        self._graded = bool(_GRADED.search(self._text))
        self._graded_off = bool(_GRADED_OFF.search(self._text))

    @property
    def text(self) -> str:
        """The template in use."""
        return self._text

    @property
    def shows_tools(self) -> bool:
        """Whether the template tells the model of its tools."""
        return bool(_TOOLS.search(self._text))

    def arguments(self, request: pb.GenerateRequest) -> dict[str, Any]:
        """Arguments of `apply_chat_template`.

        Tools are shown with any tool_choice, NONE included, as vLLM's own server does by default.
        Raises Fault INVALID_REQUEST for a tool's schema, UNSUPPORTED for tools of a model that is
        not set up for them and for a wish about reasoning.
        """
        arguments = self.thinking(request)
        if request.tools:
            if not self.tools:
                raise unsupported("tools", TOOLS_OFF)
            arguments["tools"] = tool_entries(request.tools)
        if self._override:
            arguments["chat_template"] = self._override
        return arguments

    def thinking(self, request: pb.GenerateRequest) -> dict[str, Any]:
        """The template's arguments for the wished effort; none where there is no wish.

        A template with a mere switch thinks or does not: LOW, MEDIUM and HIGH all turn it on.
        Raises Fault UNSUPPORTED for an effort that the template cannot be asked for.
        """
        effort = _EFFORTS.get(request.reasoning.effort)
        if effort is None:
            return {}
        if effort == "none" and not self._reasoning and not self._switches:
            return {}  # as far as anybody has said, the model does not reason
        arguments: dict[str, Any] = dict.fromkeys(self._switches, effort != "none")
        if self._graded and (effort != "none" or self._graded_off):
            arguments["reasoning_effort"] = effort
        if not arguments:
            raise self._no_effort(effort)
        return arguments

    def _no_effort(self, effort: str) -> Fault:
        cannot = "be told not to reason" if effort == "none" else "be told how much to reason"
        return unsupported("reasoning.effort", f"this model's chat template cannot {cannot}")
