"""Google's Gemini API (generateContent), also as Vertex AI speaks it: the codec's front.

Requests and answers are in the modules beside this one; here are the choice between them and the
meaning of refused requests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.cloud_proxy.answer import Embedded, ProviderFailure
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import AnswerDecoder, EncodedRequest, failures
from services.cloud_proxy.dialects.gemini_answer import GeminiAnswer
from services.cloud_proxy.dialects.gemini_errors import GoogleError, error_in
from services.cloud_proxy.dialects.gemini_others import (
    decode_count,
    decode_embed,
    encode_count,
    encode_embed,
)
from services.cloud_proxy.dialects.gemini_request import encode

_BAD_KEY = re.compile(r"API key (not valid|expired|not found)", re.ASCII | re.IGNORECASE)


class Gemini:
    """The codec."""

    def encode_request(
        self, request: pb.GenerateRequest, route: Route, *, max_tokens: int | None = None
    ) -> EncodedRequest:
        """See Dialect.encode_request."""
        return encode(request, route, max_tokens)

    def decoder(self, request: pb.GenerateRequest, route: Route) -> AnswerDecoder:
        """See Dialect.decoder."""
        return GeminiAnswer(route.profile, max(request.sampling.n, 1))

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFailure:
        """See Dialect.decode_error. A delay that the body asks for is set as `retry_after`; hints
        in `headers` are read by the upstream client."""
        error = error_in(body)
        failure = failures.refusal(
            _meaning(status, error), message=error.message, code=error.code, field=error.field
        )
        failure.http_status = status
        failure.retry_after = error.retry_after
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
        return decode_count(body)


def _meaning(status: int, error: GoogleError) -> int:
    """The status that says what is wrong: Google answers 400 for some faults that are ours."""
    if status == 400 and (error.reason.startswith("API_KEY_") or _BAD_KEY.search(error.message)):
        return 401
    if status == 400 and error.status == "FAILED_PRECONDITION":
        # The account or its country, not the request.
        return 404
    return status
