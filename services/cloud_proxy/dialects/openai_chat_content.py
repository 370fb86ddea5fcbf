"""What a message or a delta of OpenAI's chat completions says, in the providers' spellings.

Text and reasoning only; tool calls are read by the answer's decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.cloud_proxy.dialects.fields import broken, list_of, object_of, text_of


def content_of(content: Any) -> tuple[str, str]:
    """Text and reasoning of a content: a text, or Mistral's list of parts, some of them thoughts.

    Raises ProviderFailure for anything else, which no request of ours asks for.
    """
    if isinstance(content, str):
        return content, ""
    if content is None:
        return "", ""
    if not isinstance(content, list):
        raise broken("the provider sent a content that is no text")
    text, reasoning = "", ""
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            text += text_of(part.get("text"))
        elif kind == "thinking":
            thoughts = part.get("thinking")
            # A list of texts; a bare text would be as clear.
            reasoning += text_of(thoughts) + "".join(
                text_of(object_of(entry).get("text")) for entry in list_of(thoughts)
            )
        else:
            raise broken("the provider sent a kind of output that was not asked for")
    return text, reasoning


def reasoning_of(body: dict[str, Any], field: str, so_far: Sequence[str]) -> str:
    """New reasoning text: in the field that the profile names, or else in reasoning_details.

    MiniMax's examples treat the details as all that was thought so far, others send what is new.
    What begins with all that came before, `so_far`, is taken for the former.
    """
    reasoning = text_of(body.get(field))
    if reasoning:
        return reasoning
    details = list_of(body.get("reasoning_details"))
    told = "".join(text_of(object_of(entry).get("text")) for entry in details)
    # Joined only where it can matter: an answer may come in thousands of pieces.
    if so_far and told.startswith(so_far[0]):
        return told.removeprefix("".join(so_far))
    return told
