"""OpenAI's chat completions, the format that most providers speak: the codec's front.

Requests and answers are in the two modules beside this one; here are the choice between them and
the meaning of refused requests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.answer import FailureKind, ProviderFailure
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import AnswerDecoder, EncodedRequest
from services.cloud_proxy.dialects.openai_chat_answer import ChatAnswer
from services.cloud_proxy.dialects.openai_chat_request import encode

_TOO_LONG = re.compile(r"context_length|string_above_max_length|context_window", re.ASCII)
_NO_CREDIT = re.compile(
    r"insufficient_quota|insufficient_balance|exceeded_current_quota|billing", re.ASCII
)
_MESSAGE_LENGTH = 300


class OpenAiChat:
    """The codec."""

    def encode_request(
        self, request: pb.GenerateRequest, route: Route, *, max_tokens: int | None = None
    ) -> EncodedRequest:
        """See Dialect.encode_request."""
        return encode(request, route, max_tokens)

    def decoder(self, request: pb.GenerateRequest, route: Route) -> AnswerDecoder:
        """See Dialect.decoder."""
        return ChatAnswer(route.profile, max(request.sampling.n, 1))

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFailure:
        """See Dialect.decode_error. Retry hints in `headers` are read by the upstream client."""
        message, code, field = _error_of(body)
        kind = _kind(status, code, message)
        if kind not in (FailureKind.REFUSED_REQUEST, FailureKind.TOO_LONG):
            # Only what is wrong with the request concerns its caller. Other texts speak of our
            # account, and some quote the key.
            message = _PUBLIC[kind]
        return ProviderFailure(kind, message, http_status=status, code=code, field=field)


_PUBLIC = {
    FailureKind.BUSY: "the provider is limiting us",
    FailureKind.FAILED: "the provider failed",
    FailureKind.REFUSED_KEY: "the provider refuses our credential",
    FailureKind.NO_CREDIT: "the provider account has no credit left",
    FailureKind.MISCONFIGURED: "the provider does not know this address or model",
}


def _kind(status: int, code: str, message: str) -> FailureKind:
    if status in (401, 403):
        return FailureKind.REFUSED_KEY
    if status == 402 or _NO_CREDIT.search(code):
        return FailureKind.NO_CREDIT
    # DeepSeek and vLLM say it in words only, under a general code.
    if _TOO_LONG.search(code) or (status == 400 and "maximum context length" in message):
        return FailureKind.TOO_LONG
    if status == 429:
        return FailureKind.BUSY
    if status in (400, 413, 422):
        return FailureKind.REFUSED_REQUEST
    if status in (408, 409, 425) or status >= 500:
        return FailureKind.FAILED
    return FailureKind.MISCONFIGURED


def _error_of(body: bytes) -> tuple[str, str, str]:
    """Message, code and field of an error body, each "" when there is none."""
    fallback = "the provider refused the request"
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return fallback, "", ""
    error = document.get("error", document) if isinstance(document, dict) else {}
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        return fallback, "", ""
    message = error.get("message")
    message = message if isinstance(message, str) and message else fallback
    printable = "".join(c if c.isprintable() else " " for c in message[:_MESSAGE_LENGTH])
    code = " ".join(str(error.get(k) or "") for k in ("code", "type")).strip()[:128]
    return printable, code, str(error.get("param") or "")[:128]
