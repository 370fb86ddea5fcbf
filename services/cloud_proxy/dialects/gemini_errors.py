"""Reads Google's error objects: a message, a status word, and typed details (google.rpc)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

from services.cloud_proxy.dialects.fields import count_of, list_of, object_of, text_of

_SECONDS = re.compile(r"(\d{1,7}(?:\.\d{1,9})?)s", re.ASCII)
_LONGEST_DELAY = 86_400.0


@dataclass(frozen=True, slots=True)
class GoogleError:
    """What an error object says; "" and None where it says nothing.

    `status` is the canonical name (INVALID_ARGUMENT), `reason` the more exact one of an ErrorInfo
    (API_KEY_INVALID). `retry_after` is in seconds.
    """

    http_status: int | None = None
    message: str = ""
    status: str = ""
    reason: str = ""
    field: str = ""
    retry_after: float | None = None

    @property
    def code(self) -> str:
        """The most exact name."""
        return self.reason or self.status


def error_in(body: bytes) -> GoogleError:
    """The error of a response body, whatever the body is."""
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return GoogleError()
    if isinstance(document, list):
        # Streaming endpoints wrap it.
        document = document[0] if document else None
    return read_error(object_of(document).get("error"))


def read_error(error: Any) -> GoogleError:
    """An error object, whatever it is."""
    if isinstance(error, str):
        return GoogleError(message=error)
    error = object_of(error)
    code = count_of(error.get("code"))
    reason, field, delay = "", "", None
    for entry in map(object_of, list_of(error.get("details"))):
        kind = text_of(entry.get("@type")).rpartition(".")[2]
        if kind == "ErrorInfo":
            reason = reason or text_of(entry.get("reason"))
        elif kind == "RetryInfo":
            delay = _seconds(text_of(entry.get("retryDelay")))
        elif kind == "BadRequest":
            for violation in map(object_of, list_of(entry.get("fieldViolations"))):
                field = field or text_of(violation.get("field"))
    return GoogleError(
        http_status=code if code is not None and 400 <= code <= 599 else None,
        message=text_of(error.get("message")),
        status=text_of(error.get("status")),
        reason=reason,
        field=field,
        retry_after=delay,
    )


def _seconds(text: str) -> float | None:
    found = _SECONDS.fullmatch(text)
    return min(float(found[1]), _LONGEST_DELAY) if found else None
