"""Amazon Bedrock's Converse API: the codec's front.

Requests, answers, vectors and counts are in the modules beside this one; here are the choice
between them and the meaning of refused requests.
"""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.cloud_proxy.answer import Embedded, FailureKind, ProviderFailure
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import AnswerDecoder, EncodedRequest, failures
from services.cloud_proxy.dialects.bedrock_converse_answer import ConverseAnswer
from services.cloud_proxy.dialects.bedrock_converse_others import (
    decode_count,
    decode_embed,
    encode_count,
    encode_embed,
)
from services.cloud_proxy.dialects.bedrock_converse_request import encode
from services.cloud_proxy.dialects.fields import object_of, text_of

# Refused with statuses that mean something else elsewhere.
_KINDS = {
    "ServiceQuotaExceededException": FailureKind.BUSY,
    "ModelNotReadyException": FailureKind.FAILED,
    "ModelErrorException": FailureKind.FAILED,
}
_UNKNOWN_MODEL = "model identifier is invalid"


class BedrockConverse:
    """The codec."""

    def encode_request(
        self, request: pb.GenerateRequest, route: Route, *, max_tokens: int | None = None
    ) -> EncodedRequest:
        """See Dialect.encode_request."""
        return encode(request, route, max_tokens)

    def decoder(self, request: pb.GenerateRequest, route: Route) -> AnswerDecoder:
        """See Dialect.decoder."""
        return ConverseAnswer(route.profile)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFailure:
        """See Dialect.decode_error. The kind of an error stands in a header, else in the body."""
        try:
            document = object_of(orjson.loads(body))
        except orjson.JSONDecodeError:
            document = {}
        kind = headers.get("x-amzn-errortype", "") or text_of(document.get("__type"))
        # "com.amazon.coral.service#ThrottlingException:http://…" and other forms of the name alone.
        name = kind.partition(":")[0].rpartition("#")[2]
        message = text_of(document.get("message")) or text_of(document.get("Message"))
        if _UNKNOWN_MODEL in message:
            # Said with the status of a bad request, though it is our operator's to mend.
            status = 404
        failure = failures.refusal(status, message=message, code=name)
        if name in _KINDS and failure.kind is not _KINDS[name]:
            status = {FailureKind.BUSY: 429, FailureKind.FAILED: 503}[_KINDS[name]]
            failure = failures.refusal(status, code=name)
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
