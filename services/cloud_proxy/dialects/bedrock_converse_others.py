"""Bedrock's vectors, which each model family asks for in its own form, and its token counts."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import orjson

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.cloud_proxy.answer import Embedded, ProviderUsage
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import EncodedRequest
from services.cloud_proxy.dialects.bedrock_converse_request import prompt
from services.cloud_proxy.dialects.fields import broken, count_of, list_of, object_of, parse_object
from services.cloud_proxy.dialects.openai_chat_others import vector
from services.cloud_proxy.dialects.requests import (
    JSON_HEADERS,
    path_for,
    require,
    serialised,
    unsupported,
)

_PROFILE = re.compile(r"^(?:global|us|eu|apac|jp|au|us-gov)\.", re.ASCII)
_TITAN = "amazon.titan-embed-text"
_COHERE = "cohere.embed"
# Cohere's own limit.
_MOST_INPUTS = 96


def encode_embed(request: model_pb2.EmbedRequest, route: Route) -> EncodedRequest:
    """A request to InvokeModel in the form of the model's family. Raises Fault UNSUPPORTED."""
    require("embed", "embed", route, "cannot embed")
    if not route.profile.paths.embed:
        raise unsupported("embed", f"{route.profile.name} does not embed")
    body: dict[str, Any]
    if _TITAN in route.model.name:
        if len(request.inputs) > 1:
            raise unsupported("inputs", f"{route.name} takes one at a time")
        body = {"inputText": request.inputs[0]}
        if request.HasField("dimensions"):
            body["dimensions"] = request.dimensions
    elif _COHERE in route.model.name:
        if len(request.inputs) > _MOST_INPUTS:
            raise unsupported("inputs", f"{route.name} takes up to {_MOST_INPUTS} at once")
        if request.HasField("dimensions"):
            raise unsupported("dimensions", f"{route.name} has one length of vectors")
        body = {"texts": list(request.inputs), "input_type": "search_document"}
    else:
        raise unsupported("embed", f"the form in which {route.name} embeds is not known")
    path = path_for(route.profile.paths.embed, route)
    return EncodedRequest(path, orjson.dumps(body), JSON_HEADERS, None)


def decode_embed(request: model_pb2.EmbedRequest, body: bytes) -> Embedded:
    """The vectors in the order of their inputs. Raises ProviderFailure."""
    document = parse_object(body)
    if "embedding" in document:
        found = [vector(document["embedding"])]
    else:
        entries = document.get("embeddings")
        if isinstance(entries, dict):
            entries = object_of(entries).get("float")
        found = [vector(entry) for entry in list_of(entries)]
    if len(found) != len(request.inputs):
        raise broken("the provider sent another number of vectors than asked for")
    used = count_of(document.get("inputTextTokenCount"))
    return Embedded(found, None if used is None else ProviderUsage(used, 0, 0, 0))


def encode_count(request: pb.GenerateRequest, route: Route) -> EncodedRequest | None:
    """A request to CountTokens, where the profile has a path for it. Raises Fault."""
    if not route.profile.paths.count:
        return None
    body = {"input": {"converse": prompt(request, route)}}
    # Counted is by the model itself: inference profiles, which are named after their region, are
    # not known there.
    model = replace(route.model, name=_PROFILE.sub("", route.model.name))
    path = path_for(route.profile.paths.count, replace(route, model=model))
    return EncodedRequest(path, serialised(body), JSON_HEADERS, None)


def decode_count(body: bytes) -> int:
    """The tokens of the prompt. Raises ProviderFailure."""
    count = count_of(parse_object(body).get("inputTokens"))
    if count is None:
        raise broken("the provider sent no token count")
    return count
