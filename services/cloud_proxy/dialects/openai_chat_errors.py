"""Errors in OpenAI's format and in the other spellings of the providers that speak it.

Bodies of refused requests, and errors that come inside a response with status 200.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson

from services.cloud_proxy.answer import ProviderFailure
from services.cloud_proxy.dialects import failures
from services.cloud_proxy.dialects.fields import list_of, object_of, text_of

# MiniMax's numbers as the statuses that mean the same; it sends them with status 200, too.
# https://platform.minimax.io/docs/api-reference/errorcode
_MINIMAX: Mapping[int, int] = {1002: 429, 1004: 401, 1008: 402, 2013: 400, 2049: 401}


@dataclass(frozen=True, slots=True)
class ChatError:
    """What an error says; "" where it says nothing. `status` is the HTTP status that means the
    same, None where nothing but the response's own says it."""

    message: str = ""
    code: str = ""
    field: str = ""
    status: int | None = None


def error_in(body: bytes) -> ChatError:
    """The error of a response body, whatever the body is."""
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ChatError()
    if isinstance(document, list):
        # Google's compatible endpoint wraps it.
        document = document[0] if document else None
    if not isinstance(document, dict):
        return ChatError()
    refused = _base_response(document)
    if refused is not None:
        return refused
    # Cloudflare names several.
    several = list_of(document.get("errors"))
    error = document.get("error") or (several[0] if several else document)
    if isinstance(error, str):
        # xAI's code stands beside the words.
        return ChatError(error, text_of(document.get("code")))
    return _read(object_of(error))


def raise_in_band(document: dict[str, Any]) -> None:
    """Raises ProviderFailure when a chunk or a whole answer with status 200 is an error."""
    error = document.get("error") or object_of(document.get("x_groq")).get("error")
    if error:
        raise _in_band(error)
    if document.get("object") == "error":
        raise _in_band(document)
    refused = _base_response(document)
    if refused is None:
        return
    if refused.status is not None:
        raise failures.refusal(refused.status, message=refused.message, code=refused.code)
    raise failures.in_band(code=refused.code)


def raise_event(document: dict[str, Any]) -> NoReturn:
    """Raises ProviderFailure for an event that is named an error, however its data says it."""
    raise_in_band(document)
    raise _in_band(document)


def _read(error: dict[str, Any]) -> ChatError:
    code = " ".join(_word(error.get(name)) for name in ("code", "type"))
    message = error.get("message") or error.get("detail") or error.get("msg")
    # FastAPI's words, which some put into a message: one text, or entries with places.
    if isinstance(message, dict):
        message = message.get("detail") or message.get("message")
    field = _word(error.get("param"))
    if isinstance(message, list):
        first = object_of(message[0]) if message else {}
        field = field or ".".join(map(_word, list_of(first.get("loc"))))
        message = first.get("msg")
    return ChatError(text_of(message), code.strip(), field)


def _base_response(document: dict[str, Any]) -> ChatError | None:
    """MiniMax's own outcome, None where it is a good one or there is none."""
    outcome = object_of(document.get("base_resp"))
    number = outcome.get("status_code")
    if not isinstance(number, int) or number == 0:
        return None
    status = _MINIMAX.get(number)
    return ChatError(text_of(outcome.get("status_msg")), _word(number), status=status)


def _in_band(error: Any) -> ProviderFailure:
    code, status = "", None
    if isinstance(error, dict):
        raw = error.get("code")
        number = int(raw) if isinstance(raw, str) and len(raw) == 3 and _digits(raw) else raw
        if isinstance(number, int) and 400 <= number <= 599:
            status = number
        else:
            code = _word(raw) or _word(error.get("type"))
    return failures.in_band(status=status, code=code)


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _word(value: Any) -> str:
    """A name or a number as text; "" for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    return str(value)
