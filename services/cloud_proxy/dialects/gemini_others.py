"""Gemini's embeddings and token counts."""

from __future__ import annotations

from typing import Any

import orjson

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.cloud_proxy.answer import Embedded, ProviderUsage
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import EncodedRequest
from services.cloud_proxy.dialects.fields import broken, count_of, list_of, object_of, parse_object
from services.cloud_proxy.dialects.gemini_request import body_of
from services.cloud_proxy.dialects.openai_chat_others import vector
from services.cloud_proxy.dialects.requests import (
    JSON_HEADERS,
    path_for,
    require,
    serialised,
    unsupported,
)

# The provider refuses larger batches.
_MOST_INPUTS = 100


def encode_embed(request: model_pb2.EmbedRequest, route: Route) -> EncodedRequest:
    """A request to batchEmbedContents. Raises Fault UNSUPPORTED."""
    require("embed", "embed", route, "cannot embed")
    if not route.profile.paths.embed:
        raise unsupported("embed", f"{route.profile.name} does not embed")
    if len(request.inputs) > _MOST_INPUTS:
        raise unsupported("inputs", f"{route.name} takes up to {_MOST_INPUTS} at once")
    model = _resource(route)
    more = {"outputDimensionality": request.dimensions} if request.HasField("dimensions") else {}
    # One content each: several parts of one content would share a vector.
    entries: list[dict[str, Any]] = [
        {"model": model, "content": {"parts": [{"text": text}]}, **more} for text in request.inputs
    ]
    path = path_for(route.profile.paths.embed, route)
    return EncodedRequest(path, orjson.dumps({"requests": entries}), JSON_HEADERS, None)


def decode_embed(request: model_pb2.EmbedRequest, body: bytes) -> Embedded:
    """The vectors, which come in the order of the inputs. Raises ProviderFailure."""
    document = parse_object(body)
    found = [
        vector(object_of(entry).get("values")) for entry in list_of(document.get("embeddings"))
    ]
    if len(found) != len(request.inputs):
        raise broken("the provider sent another number of vectors than asked for")
    used = count_of(object_of(document.get("usageMetadata")).get("promptTokenCount"))
    return Embedded(found, None if used is None else ProviderUsage(used, 0, 0, 0))


def encode_count(request: pb.GenerateRequest, route: Route) -> EncodedRequest | None:
    """A request to countTokens with all that generateContent would get, where the profile has a
    path for it. Raises Fault UNSUPPORTED and INVALID_REQUEST."""
    if not route.profile.paths.count:
        return None
    body, _ = body_of(request, route)
    whole = {"generateContentRequest": {"model": _resource(route), **body}}
    path = path_for(route.profile.paths.count, route)
    return EncodedRequest(path, serialised(whole), JSON_HEADERS, None)


def decode_count(body: bytes) -> int:
    """The tokens of the prompt. Raises ProviderFailure."""
    count = count_of(parse_object(body).get("totalTokens"))
    if count is None:
        raise broken("the provider sent no token count")
    return count


def _resource(route: Route) -> str:
    return f"models/{route.model.name}"
