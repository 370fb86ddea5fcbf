"""Checks a GenerateRequest before anything is allocated, queued or tokenised.

Pure: reads the message, raises one Fault that lists every violation. Limits that
depend on a model (context length, vocabulary) are the backend's to check.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Violation, invalid

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}\Z")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Caps on one request; counts and UTF-8 bytes."""

    messages: int = 4096
    parts: int = 1024
    prompt_bytes: int = 2 * 1024 * 1024
    prompt_tokens: int = 1_048_576
    model_name: int = 256
    choices: int = 8
    logprobs: int = 20
    stop_strings: int = 16
    stop_length: int = 256
    tools: int = 128
    schema_bytes: int = 64 * 1024
    schema_depth: int = 64
    options: int = 1024
    labels: int = 16


DEFAULT_LIMITS = RequestLimits()

# (field, smallest, largest, smallest itself excluded)
_RANGES = (
    ("temperature", 0.0, 2.0, False),
    ("top_p", 0.0, 1.0, True),
    ("min_p", 0.0, 1.0, False),
    ("presence_penalty", -2.0, 2.0, False),
    ("frequency_penalty", -2.0, 2.0, False),
    ("repetition_penalty", 0.0, 2.0, True),
)


def validate_generate(
    request: pb.GenerateRequest, limits: RequestLimits = DEFAULT_LIMITS, *, path: str = ""
) -> None:
    """Raises Fault INVALID_REQUEST naming every violation; `path` prefixes field names."""
    found = [Violation(path + v.field, v.description) for v in generate_violations(request, limits)]
    if found:
        raise invalid(found)


def generate_violations(
    request: pb.GenerateRequest, limits: RequestLimits = DEFAULT_LIMITS
) -> Iterator[Violation]:
    """Every violation of a request, in the order of its fields."""
    if not request.model:
        yield Violation("model", "is required; ListModels lists the names")
    elif len(request.model) > limits.model_name:
        yield Violation("model", f"is longer than {limits.model_name} characters")
    yield from _input(request, limits)
    yield from _sampling(request.sampling, limits, len(request.continuation.token_ids))
    yield from _tools(request, limits)
    yield from _format(request.response_format, limits)
    yield from _routing(request.routing)
    if request.request_id and not _REQUEST_ID.match(request.request_id):
        yield Violation("request_id", "must be 1 to 128 printable ASCII characters")
    if len(request.labels) > limits.labels:
        yield Violation("labels", f"has more than {limits.labels} entries")
    for key, value in request.labels.items():
        if not 0 < len(key) <= 63 or len(value) > 256:
            yield Violation("labels", "keys have 1 to 63 characters, values at most 256")
            break
    if request.HasField("timeout") and request.timeout.ToNanoseconds() <= 0:
        yield Violation("timeout", "must be above zero")
    yield from _token_ids(request.continuation.token_ids, "continuation.token_ids", limits)
    if len(request.continuation.text.encode()) > limits.prompt_bytes:
        yield Violation("continuation.text", f"is larger than {limits.prompt_bytes} bytes")


def _input(request: pb.GenerateRequest, limits: RequestLimits) -> Iterator[Violation]:
    given = [
        name
        for name, present in (
            ("messages", bool(request.messages)),
            ("prompt", bool(request.prompt)),
            ("prompt_token_ids", bool(request.prompt_token_ids)),
        )
        if present
    ]
    if len(given) != 1:
        yield Violation(
            "messages",
            "exactly one of messages, prompt and prompt_token_ids must be given, not "
            + (" and ".join(given) or "none"),
        )
    yield from _token_ids(request.prompt_token_ids, "prompt_token_ids", limits)
    size = len(request.prompt.encode())
    if len(request.messages) > limits.messages:
        yield Violation("messages", f"has more than {limits.messages} entries")
        return
    for number, message in enumerate(request.messages):
        at = f"messages[{number}]"
        yield from _message(message, at, limits)
        size += sum(len(part.text.encode()) for part in message.content)
        size += sum(len(call.arguments.encode()) for call in message.tool_calls)
    if size > limits.prompt_bytes:
        yield Violation("messages", f"text is larger than {limits.prompt_bytes} bytes")


def _token_ids(ids: Sequence[int], at: str, limits: RequestLimits) -> Iterator[Violation]:
    if len(ids) > limits.prompt_tokens:
        yield Violation(at, f"has more than {limits.prompt_tokens} entries")
    elif ids and min(ids) < 0:
        yield Violation(at, "must not be negative")


def _message(message: pb.Message, at: str, limits: RequestLimits) -> Iterator[Violation]:
    if message.role not in (pb.ROLE_SYSTEM, pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_TOOL):
        yield Violation(f"{at}.role", "must be SYSTEM, USER, ASSISTANT or TOOL")
    if len(message.content) > limits.parts:
        yield Violation(f"{at}.content", f"has more than {limits.parts} parts")
        return
    if not message.content and not message.tool_calls:
        yield Violation(f"{at}.content", "must not be empty")
    for number, part in enumerate(message.content):
        kind = part.WhichOneof("part")
        if kind is None:
            yield Violation(f"{at}.content[{number}]", "must hold text or an image")
        elif kind == "image":
            image = part.image
            if not image.WhichOneof("source"):
                yield Violation(f"{at}.content[{number}].image", "must hold data or a uri")
            elif image.uri and not image.uri.startswith("https://"):
                yield Violation(f"{at}.content[{number}].image.uri", "must be an https address")
            if not image.media_type.startswith("image/"):
                yield Violation(f"{at}.content[{number}].image.media_type", "must be image/…")
    if message.tool_calls and message.role != pb.ROLE_ASSISTANT:
        yield Violation(f"{at}.tool_calls", "belong to ASSISTANT messages only")
    if message.role == pb.ROLE_TOOL and not message.tool_call_id:
        yield Violation(f"{at}.tool_call_id", "is required in TOOL messages")


def _sampling(sampling: pb.Sampling, limits: RequestLimits, existing: int) -> Iterator[Violation]:
    for name, low, high, open_below in _RANGES:
        if not sampling.HasField(name):
            continue
        value = getattr(sampling, name)
        below = value <= low if open_below else value < low
        if math.isnan(value) or below or value > high:
            start = "above" if open_below else "from"
            yield Violation(f"sampling.{name}", f"must be {start} {low:g} to {high:g}")
    if sampling.HasField("max_tokens") and sampling.max_tokens < 1:
        yield Violation("sampling.max_tokens", "must be 1 or more")
    if sampling.HasField("top_k") and sampling.top_k < -1:
        yield Violation("sampling.top_k", "must be 1 or more, or 0 or -1 for all")
    if sampling.HasField("n") and not 1 <= sampling.n <= limits.choices:
        yield Violation("sampling.n", f"must be from 1 to {limits.choices}")
    if sampling.HasField("logprobs") and not 0 <= sampling.logprobs <= limits.logprobs:
        yield Violation("sampling.logprobs", f"must be from 0 to {limits.logprobs}")
    if sampling.HasField("min_tokens") and sampling.min_tokens < 0:
        yield Violation("sampling.min_tokens", "must not be negative")
    elif (
        sampling.HasField("min_tokens")
        and sampling.HasField("max_tokens")
        and sampling.min_tokens - existing > sampling.max_tokens >= 1
    ):
        yield Violation("sampling.min_tokens", "must not exceed max_tokens")
    if len(sampling.stop) > limits.stop_strings:
        yield Violation("sampling.stop", f"has more than {limits.stop_strings} entries")
    elif any(not 0 < len(stop) <= limits.stop_length for stop in sampling.stop):
        yield Violation("sampling.stop", f"each has 1 to {limits.stop_length} characters")


def _tools(request: pb.GenerateRequest, limits: RequestLimits) -> Iterator[Violation]:
    if len(request.tools) > limits.tools:
        yield Violation("tools", f"has more than {limits.tools} entries")
        return
    names = set()
    for number, tool in enumerate(request.tools):
        if not _TOOL_NAME.match(tool.name):
            yield Violation(f"tools[{number}].name", "must be 1 to 64 of letters, digits, _ and -")
        elif tool.name in names:
            yield Violation(f"tools[{number}].name", "is there twice")
        names.add(tool.name)
        if tool.parameters_json_schema:
            at = f"tools[{number}].parameters_json_schema"
            yield from _schema(tool.parameters_json_schema, at, limits)
    if request.tool_choice.mode == pb.ToolChoice.MODE_REQUIRED and not request.tools:
        yield Violation("tool_choice.mode", "is REQUIRED but there are no tools")
    if request.tool_choice.mode not in pb.ToolChoice.Mode.values():
        yield Violation("tool_choice.mode", "is not a known value")
    if request.tool_choice.name and request.tool_choice.name not in names:
        yield Violation("tool_choice.name", "names no tool of this request")


def _format(wanted: pb.ResponseFormat, limits: RequestLimits) -> Iterator[Violation]:
    kind = wanted.WhichOneof("format")
    if kind == "json_schema":
        yield from _schema(wanted.json_schema, "response_format.json_schema", limits)
    elif kind in ("regex", "grammar"):
        text = getattr(wanted, kind)
        if not 0 < len(text) <= limits.schema_bytes:
            yield Violation(
                f"response_format.{kind}", f"must have 1 to {limits.schema_bytes} characters"
            )
    elif kind == "choice":
        options = wanted.choice.options
        if not 0 < len(options) <= limits.options or any(not option for option in options):
            yield Violation(
                "response_format.choice.options",
                f"must be 1 to {limits.options} strings, none of them empty",
            )
        elif sum(map(len, options)) > limits.schema_bytes:
            yield Violation(
                "response_format.choice.options",
                f"are longer than {limits.schema_bytes} characters together",
            )


def _schema(text: str, at: str, limits: RequestLimits) -> Iterator[Violation]:
    """Bounded before anybody compiles it: nesting costs a parser its stack."""
    if len(text) > limits.schema_bytes:
        yield Violation(at, f"is longer than {limits.schema_bytes} characters")
        return
    try:
        schema = orjson.loads(text)
    except orjson.JSONDecodeError:
        # Also what is nested deeper than the parser itself goes.
        yield Violation(at, "is not JSON")
        return
    if not isinstance(schema, dict):
        yield Violation(at, "is not a JSON object")
    elif _deeper(schema, limits.schema_depth):
        yield Violation(at, f"is nested deeper than {limits.schema_depth} levels")


def _deeper(document: Any, levels: int) -> bool:
    """Whether objects and arrays lie in each other deeper than so many levels."""
    level = [document]
    for _ in range(levels):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _routing(routing: pb.Routing) -> Iterator[Violation]:
    if routing.residency not in pb.Residency.values():
        yield Violation("routing.residency", "is not a known value")
    if routing.priority not in pb.Priority.values():
        yield Violation("routing.priority", "is not a known value")
    if routing.HasField("ttft_slo") and routing.ttft_slo.ToNanoseconds() <= 0:
        yield Violation("routing.ttft_slo", "must be above zero")
    if routing.HasField("max_cost_microusd") and routing.max_cost_microusd < 0:
        yield Violation("routing.max_cost_microusd", "must not be negative")
    if len(routing.affinity_key) > 256:
        yield Violation("routing.affinity_key", "is longer than 256 characters")
    if len(routing.backend_id) > 256:
        yield Violation("routing.backend_id", "is longer than 256 characters")
