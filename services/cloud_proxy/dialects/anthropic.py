"""Anthropic's Messages API: the codec's front.

Requests and answers are in the modules beside this one; here are the choice between them, token
counts and the meaning of refused requests.
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
from services.cloud_proxy.dialects.anthropic_answer import MessagesAnswer
from services.cloud_proxy.dialects.anthropic_request import encode, encode_count
from services.cloud_proxy.dialects.fields import (
    broken,
    count_of,
    object_of,
    parse_object,
    text_of,
)
from services.cloud_proxy.dialects.requests import unsupported


class Anthropic:
    """The codec."""

    def encode_request(
        self, request: pb.GenerateRequest, route: Route, *, max_tokens: int | None = None
    ) -> EncodedRequest:
        """See Dialect.encode_request."""
        return encode(request, route, max_tokens)

    def decoder(self, request: pb.GenerateRequest, route: Route) -> AnswerDecoder:
        """See Dialect.decoder."""
        return MessagesAnswer(route.profile)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFailure:
        """See Dialect.decode_error. Retry hints in `headers` are read by the upstream client."""
        message, code = _error_of(body)
        return failures.refusal(status, message=message, code=code)

    def encode_embed(self, request: model_pb2.EmbedRequest, route: Route) -> EncodedRequest:
        """See Dialect.encode_embed. There are no embeddings in this API."""
        raise unsupported("embed", f"{route.profile.name} does not embed")

    def decode_embed(self, request: model_pb2.EmbedRequest, route: Route, body: bytes) -> Embedded:
        """See Dialect.decode_embed. Nothing can be an answer to what is never asked."""
        raise broken("the provider sent vectors that were not asked for")

    def encode_count(self, request: pb.GenerateRequest, route: Route) -> EncodedRequest | None:
        """See Dialect.encode_count."""
        return encode_count(request, route)

    def decode_count(self, route: Route, body: bytes) -> int:
        """See Dialect.decode_count."""
        count = count_of(parse_object(body).get("input_tokens"))
        if count is None:
            raise broken("the provider sent no token count")
        return count


def _error_of(body: bytes) -> tuple[str, str]:
    """Message and code of an error body, each "" when there is none.

    The code is the error's type and, where there is one, the finer code in its details: the type
    alone does not tell a reached spend limit from a rate limit.
    """
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return "", ""
    error = object_of(object_of(document).get("error"))
    details = object_of(error.get("details"))
    codes = (text_of(error.get("type")), text_of(details.get("error_code")))
    return text_of(error.get("message")), " ".join(code for code in codes if code)
