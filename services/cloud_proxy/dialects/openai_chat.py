"""OpenAI's chat completions, the format that most providers speak: the codec's front.

Requests and answers are in the modules beside this one; here are the choice between them and the
meaning of refused requests.
"""

from __future__ import annotations

from collections.abc import Mapping

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.cloud_proxy.answer import Embedded, ProviderFailure
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import AnswerDecoder, EncodedRequest, failures
from services.cloud_proxy.dialects.openai_chat_answer import ChatAnswer
from services.cloud_proxy.dialects.openai_chat_errors import error_in
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
        sampling = request.sampling
        return ChatAnswer(route.profile, max(sampling.n, 1), frozenset(sampling.stop))

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFailure:
        """See Dialect.decode_error. Retry hints in `headers` are read by the upstream client."""
        error = error_in(body)
        failure = failures.refusal(
            error.status or status, message=error.message, code=error.code, field=error.field
        )
        failure.http_status = status
        return failure

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
