"""OpenAI's embeddings, and the token counts that some of the providers of its format offer."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from typing import Any

import orjson

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.cloud_proxy.answer import Embedded, ProviderUsage
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import EncodedRequest
from services.cloud_proxy.dialects.fields import broken, count_of, list_of, object_of, parse_object
from services.cloud_proxy.dialects.openai_chat_errors import raise_in_band
from services.cloud_proxy.dialects.openai_chat_request import continuation_body, messages
from services.cloud_proxy.dialects.requests import (
    JSON_HEADERS,
    merge,
    path_for,
    require,
    serialised,
    unsupported,
)


def encode_embed(request: model_pb2.EmbedRequest, route: Route) -> EncodedRequest:
    """A request to /v1/embeddings. Raises Fault UNSUPPORTED."""
    require("embed", "embed", route, "cannot embed")
    if not route.profile.paths.embed:
        raise unsupported("embed", f"{route.profile.name} does not embed")
    body: dict[str, Any] = {
        "model": route.model.name,
        "input": list(request.inputs),
        "encoding_format": "float",
    }
    if request.HasField("dimensions"):
        body["dimensions"] = request.dimensions
    path = path_for(route.profile.paths.embed, route)
    return EncodedRequest(path, orjson.dumps(body), JSON_HEADERS, None)


def decode_embed(request: model_pb2.EmbedRequest, body: bytes) -> Embedded:
    """The vectors by their index. Raises ProviderFailure."""
    document = parse_object(body)
    raise_in_band(document)
    found: dict[int, list[float]] = {}
    for position, entry in enumerate(list_of(document.get("data"))):
        entry = object_of(entry)
        index = entry.get("index", position)
        found[index if isinstance(index, int) else position] = vector(entry.get("embedding"))
    if sorted(found) != list(range(len(request.inputs))):
        raise broken("the provider sent another number of vectors than asked for")
    used = count_of(object_of(document.get("usage")).get("prompt_tokens"))
    usage = None if used is None else ProviderUsage(used, 0, 0, 0)
    return Embedded([found[n] for n in range(len(found))], usage)


def vector(value: Any) -> list[float]:
    """An embedding: numbers, or little-endian 32-bit floats in base64, which some send unasked.

    Raises ProviderFailure for what is none.
    """
    if isinstance(value, str):
        return _floats(value)
    numbers = list_of(value)
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        raise broken("the provider sent an embedding that is no list of numbers")
    return [float(n) for n in numbers]


def _floats(text: str) -> list[float]:
    try:
        data = base64.b64decode(text, validate=True)
        found = list(struct.unpack(f"<{len(data) // 4}f", data))
    except (binascii.Error, ValueError, struct.error):
        raise broken("the provider sent an embedding that is no base64 of floats") from None
    if not found or not all(map(math.isfinite, found)):
        raise broken("the provider sent an embedding that is no list of numbers")
    return found


def encode_count(request: pb.GenerateRequest, route: Route) -> EncodedRequest | None:
    """A request to the provider's own counting endpoint, where the profile names one."""
    paths = route.profile.paths
    if not (paths.count and paths.count_result):
        return None
    body: dict[str, Any] = {"model": route.model.name, "messages": messages(request, route)}
    merge(body, continuation_body(request, route))
    return EncodedRequest(path_for(paths.count, route), serialised(body), JSON_HEADERS, None)


def decode_count(route: Route, body: bytes) -> int:
    """The number at the place that the profile names. Raises ProviderFailure."""
    value: Any = parse_object(body)
    raise_in_band(value)
    for name in route.profile.paths.count_result.split("."):
        value = object_of(value).get(name)
    count = count_of(value)
    if count is None:
        raise broken("the provider sent no token count")
    return count
