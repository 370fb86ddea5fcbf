"""Ollama's own API (/api/chat, /api/embed): the codec's front.

Requests and answers are in the modules beside this one; here are the choice between them, vectors
and the meaning of refused requests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.cloud_proxy.answer import Embedded, ProviderFailure, ProviderUsage
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import AnswerDecoder, EncodedRequest, failures
from services.cloud_proxy.dialects.fields import (
    broken,
    count_of,
    list_of,
    object_of,
    parse_object,
    text_of,
)
from services.cloud_proxy.dialects.ollama_answer import OllamaAnswer
from services.cloud_proxy.dialects.ollama_request import encode
from services.cloud_proxy.dialects.openai_chat_others import vector
from services.cloud_proxy.dialects.requests import JSON_HEADERS, path_for, require, unsupported

# Errors have no codes here, only words.
_TOO_LONG = re.compile(r"exceeds? the (available )?context|context (length|size)", re.IGNORECASE)


class Ollama:
    """The codec."""

    def encode_request(
        self, request: pb.GenerateRequest, route: Route, *, max_tokens: int | None = None
    ) -> EncodedRequest:
        """See Dialect.encode_request."""
        return encode(request, route, max_tokens)

    def decoder(self, request: pb.GenerateRequest, route: Route) -> AnswerDecoder:
        """See Dialect.decoder."""
        return OllamaAnswer(route.profile)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFailure:
        """See Dialect.decode_error. Retry hints in `headers` are read by the upstream client."""
        message = _message_of(body)
        code = "context_length" if status == 400 and _TOO_LONG.search(message) else ""
        return failures.refusal(status, message=message, code=code)

    def encode_embed(self, request: model_pb2.EmbedRequest, route: Route) -> EncodedRequest:
        """See Dialect.encode_embed."""
        require("embed", "embed", route, "cannot embed")
        if not route.profile.paths.embed:
            raise unsupported("embed", f"{route.profile.name} does not embed")
        body: dict[str, Any] = {
            "model": route.model.name,
            "input": list(request.inputs),
            # Else an input that is too long would be cut without a word.
            "truncate": False,
        }
        if request.HasField("dimensions"):
            body["dimensions"] = request.dimensions
        path = path_for(route.profile.paths.embed, route)
        return EncodedRequest(path, orjson.dumps(body), JSON_HEADERS, None)

    def decode_embed(self, request: model_pb2.EmbedRequest, route: Route, body: bytes) -> Embedded:
        """See Dialect.decode_embed. Vectors come in the order of the inputs."""
        document = parse_object(body)
        found = [vector(entry) for entry in list_of(document.get("embeddings"))]
        if len(found) != len(request.inputs):
            raise broken("the provider sent another number of vectors than asked for")
        used = count_of(document.get("prompt_eval_count"))
        return Embedded(found, None if used is None else ProviderUsage(used, 0, 0, 0))

    def encode_count(self, request: pb.GenerateRequest, route: Route) -> EncodedRequest | None:
        """See Dialect.encode_count. There is no endpoint for it."""
        return None

    def decode_count(self, route: Route, body: bytes) -> int:
        """See Dialect.decode_count. Nothing can be an answer to what is never asked."""
        raise broken("the provider sent a count that was not asked for")


def _message_of(body: bytes) -> str:
    """The message of an error body, "" when there is none."""
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    error = object_of(document).get("error")
    return text_of(error) or text_of(object_of(error).get("message"))
