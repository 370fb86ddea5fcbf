"""OpenAI's chat completions, the format that most providers speak: the codec's front.

Requests and answers are in the modules beside this one; here are the choice between them and the
meaning of refused requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.cloud_proxy.answer import Embedded, ProviderFailure
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import AnswerDecoder, EncodedRequest, failures
from services.cloud_proxy.dialects.fields import text_of
from services.cloud_proxy.dialects.openai_chat_answer import ChatAnswer
from services.cloud_proxy.dialects.openai_chat_others import (
    decode_count,
    decode_embed,
    encode_count,
    encode_embed,
)
from services.cloud_proxy.dialects.openai_chat_request import encode


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
        return failures.refusal(status, message=message, code=code, field=field)

    def encode_embed(self, request: model_pb2.EmbedRequest, route: Route) -> EncodedRequest:
        """See Dialect.encode_embed."""
        return encode_embed(request, route)

    def decode_embed(self, request: model_pb2.EmbedRequest, route: Route, body: bytes) -> Embedded:
        """See Dialect.decode_embed."""
        return decode_embed(request, body)

    def encode_count(self, request: pb.GenerateRequest, route: Route) -> EncodedRequest | None:
        """See Dialect.encode_count."""
        return encode_count(request, route)

    def decode_count(self, route: Route, body: bytes) -> int:
        """See Dialect.decode_count."""
        return decode_count(route, body)


def _error_of(body: bytes) -> tuple[str, str, str]:
    """Message, code and field of an error body, each "" when there is none."""
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", "", ""
    error = document.get("error", document) if isinstance(document, dict) else {}
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        return "", "", ""
    code = " ".join(str(error.get(k) or "") for k in ("code", "type"))
    return text_of(error.get("message")), code, str(error.get("param") or "")
