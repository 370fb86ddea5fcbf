"""Checks a GenerateRequest before anything is allocated, queued or tokenised.

Pure: reads the message, raises one Fault that lists every violation. Limits that
depend on a model (context length, vocabulary) are the backend's to check.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Violation, invalid

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}\Z")
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

_ROLES = frozenset((pb.ROLE_SYSTEM, pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_TOOL))
_MODES = frozenset(pb.ToolChoice.Mode.values())
_RESIDENCIES = frozenset(pb.Residency.values())
_PRIORITIES = frozenset(pb.Priority.values())
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
    request: pb.GenerateRequest,
    limits: RequestLimits = DEFAULT_LIMITS,
    *,
    path: str = "",
    size: int | None = None,
) -> None:
    """Raises Fault INVALID_REQUEST naming every violation; `path` prefixes field names.

    `size` is the serialised request's, in bytes, where it is known: texts that cannot be
    too large then need not be measured.
    """
    found = generate_violations(request, limits, size=size)
    if found:
        raise invalid([Violation(path + v.field, v.description) for v in found] if path else found)


def generate_violations(
    request: pb.GenerateRequest,
    limits: RequestLimits = DEFAULT_LIMITS,
    *,
    size: int | None = None,
) -> list[Violation]:
    """Every violation of a request, in the order of its fields.

    What is absent costs one look: most requests have a model, messages and a few parameters.
    """
    found: list[Violation] = []
    small = size is not None and size <= limits.prompt_bytes
    if not request.model:
        found.append(Violation("model", "is required; ListModels lists the names"))
    elif len(request.model) > limits.model_name:
        found.append(Violation("model", f"is longer than {limits.model_name} characters"))
    _input(request, limits, found, small)
    existing = len(request.continuation.token_ids) if request.HasField("continuation") else 0
    if request.HasField("sampling"):
        _sampling(request.sampling, limits, existing, found)
    if request.tools or request.HasField("tool_choice"):
        _tools(request, limits, found)
    if request.HasField("response_format"):
        _format(request.response_format, limits, found)
    if request.HasField("routing"):
        _routing(request.routing, found)
    if request.request_id and not REQUEST_ID.match(request.request_id):
        found.append(Violation("request_id", "must be 1 to 128 printable ASCII characters"))
    if request.labels:
        _labels(request.labels, limits, found)
    if request.HasField("timeout") and request.timeout.ToNanoseconds() <= 0:
        found.append(Violation("timeout", "must be above zero"))
    if request.HasField("continuation"):
        given = request.continuation
        _token_ids(given.token_ids, "continuation.token_ids", limits, found)
        if not small and len(given.text.encode()) > limits.prompt_bytes:
            found.append(
                Violation("continuation.text", f"is larger than {limits.prompt_bytes} bytes")
            )
    return found


def _input(
    request: pb.GenerateRequest, limits: RequestLimits, found: list[Violation], small: bool
) -> None:
    messages, ids = request.messages, request.prompt_token_ids
    if bool(messages) + bool(request.prompt) + bool(ids) != 1:
        names = ("messages", "prompt", "prompt_token_ids")
        given = [name for name in names if getattr(request, name)]
        found.append(
            Violation(
                "messages",
                "exactly one of messages, prompt and prompt_token_ids must be given, not "
                + (" and ".join(given) or "none"),
            )
        )
    if ids:
        _token_ids(ids, "prompt_token_ids", limits, found)
    if len(messages) > limits.messages:
        found.append(Violation("messages", f"has more than {limits.messages} entries"))
        return
    for number, message in enumerate(messages):
        _message(message, f"messages[{number}]", limits, found)
    if not small and len(request.prompt.encode()) + _text_bytes(messages) > limits.prompt_bytes:
        found.append(Violation("messages", f"text is larger than {limits.prompt_bytes} bytes"))


def _text_bytes(messages: Iterable[pb.Message]) -> int:
    return sum(
        sum(len(part.text.encode()) for part in message.content)
        + sum(len(call.arguments.encode()) for call in message.tool_calls)
        for message in messages
    )


def _token_ids(ids: Sequence[int], at: str, limits: RequestLimits, found: list[Violation]) -> None:
    if len(ids) > limits.prompt_tokens:
        found.append(Violation(at, f"has more than {limits.prompt_tokens} entries"))
    elif ids and min(ids) < 0:
        found.append(Violation(at, "must not be negative"))


def _message(message: pb.Message, at: str, limits: RequestLimits, found: list[Violation]) -> None:
    role, content = message.role, message.content
    if role not in _ROLES:
        found.append(Violation(f"{at}.role", "must be SYSTEM, USER, ASSISTANT or TOOL"))
    if len(content) > limits.parts:
        found.append(Violation(f"{at}.content", f"has more than {limits.parts} parts"))
        return
    if not content and not message.tool_calls:
        found.append(Violation(f"{at}.content", "must not be empty"))
    for number, part in enumerate(content):
        if not part.HasField("text"):
            _part(part, f"{at}.content[{number}]", found)
    if role != pb.ROLE_ASSISTANT and message.tool_calls:
        found.append(Violation(f"{at}.tool_calls", "belong to ASSISTANT messages only"))
    if role == pb.ROLE_TOOL and not message.tool_call_id:
        found.append(Violation(f"{at}.tool_call_id", "is required in TOOL messages"))


def _part(part: pb.ContentPart, at: str, found: list[Violation]) -> None:
    """A part that is no text."""
    if not part.HasField("image"):
        found.append(Violation(at, "must hold text or an image"))
        return
    image = part.image
    if not image.WhichOneof("source"):
        found.append(Violation(f"{at}.image", "must hold data or a uri"))
    elif image.uri and not image.uri.startswith("https://"):
        found.append(Violation(f"{at}.image.uri", "must be an https address"))
    if not image.media_type.startswith("image/"):
        found.append(Violation(f"{at}.image.media_type", "must be image/…"))


def _sampling(
    sampling: pb.Sampling, limits: RequestLimits, existing: int, found: list[Violation]
) -> None:
    has = sampling.HasField
    for name, low, high, open_below in _RANGES:
        if not has(name):
            continue
        value = getattr(sampling, name)
        below = value <= low if open_below else value < low
        if math.isnan(value) or below or value > high:
            start = "above" if open_below else "from"
            found.append(Violation(f"sampling.{name}", f"must be {start} {low:g} to {high:g}"))
    if has("max_tokens") and sampling.max_tokens < 1:
        found.append(Violation("sampling.max_tokens", "must be 1 or more"))
    if has("top_k") and sampling.top_k < -1:
        found.append(Violation("sampling.top_k", "must be 1 or more, or 0 or -1 for all"))
    if has("n") and not 1 <= sampling.n <= limits.choices:
        found.append(Violation("sampling.n", f"must be from 1 to {limits.choices}"))
    if has("logprobs") and not 0 <= sampling.logprobs <= limits.logprobs:
        found.append(Violation("sampling.logprobs", f"must be from 0 to {limits.logprobs}"))
    if has("min_tokens"):
        if sampling.min_tokens < 0:
            found.append(Violation("sampling.min_tokens", "must not be negative"))
        elif has("max_tokens") and sampling.min_tokens - existing > sampling.max_tokens >= 1:
            found.append(Violation("sampling.min_tokens", "must not exceed max_tokens"))
    stop = sampling.stop
    if len(stop) > limits.stop_strings:
        found.append(Violation("sampling.stop", f"has more than {limits.stop_strings} entries"))
    elif any(not 0 < len(text) <= limits.stop_length for text in stop):
        found.append(Violation("sampling.stop", f"each has 1 to {limits.stop_length} characters"))


def _tools(request: pb.GenerateRequest, limits: RequestLimits, found: list[Violation]) -> None:
    if len(request.tools) > limits.tools:
        found.append(Violation("tools", f"has more than {limits.tools} entries"))
        return
    names = set()
    for number, tool in enumerate(request.tools):
        at = f"tools[{number}]"
        if not _TOOL_NAME.match(tool.name):
            found.append(Violation(f"{at}.name", "must be 1 to 64 of letters, digits, _ and -"))
        elif tool.name in names:
            found.append(Violation(f"{at}.name", "is there twice"))
        names.add(tool.name)
        if tool.parameters_json_schema:
            _schema(tool.parameters_json_schema, f"{at}.parameters_json_schema", limits, found)
    choice = request.tool_choice
    if choice.mode == pb.ToolChoice.MODE_REQUIRED and not request.tools:
        found.append(Violation("tool_choice.mode", "is REQUIRED but there are no tools"))
    if choice.mode not in _MODES:
        found.append(Violation("tool_choice.mode", "is not a known value"))
    if choice.name and choice.name not in names:
        found.append(Violation("tool_choice.name", "names no tool of this request"))


def _labels(labels: Mapping[str, str], limits: RequestLimits, found: list[Violation]) -> None:
    if len(labels) > limits.labels:
        found.append(Violation("labels", f"has more than {limits.labels} entries"))
    if any(not 0 < len(key) <= 63 or len(value) > 256 for key, value in labels.items()):
        found.append(Violation("labels", "keys have 1 to 63 characters, values at most 256"))


def _format(wanted: pb.ResponseFormat, limits: RequestLimits, found: list[Violation]) -> None:
    kind = wanted.WhichOneof("format")
    if kind == "json_schema":
        _schema(wanted.json_schema, "response_format.json_schema", limits, found)
    elif kind in ("regex", "grammar"):
        if not 0 < len(getattr(wanted, kind)) <= limits.schema_bytes:
            found.append(
                Violation(
                    f"response_format.{kind}", f"must have 1 to {limits.schema_bytes} characters"
                )
            )
    elif kind == "choice":
        at = "response_format.choice.options"
        options = wanted.choice.options
        if not 0 < len(options) <= limits.options or any(not option for option in options):
            found.append(
                Violation(at, f"must be 1 to {limits.options} strings, none of them empty")
            )
        elif sum(map(len, options)) > limits.schema_bytes:
            found.append(
                Violation(at, f"are longer than {limits.schema_bytes} characters together")
            )


def _schema(text: str, at: str, limits: RequestLimits, found: list[Violation]) -> None:
    """Bounded before anybody compiles it: nesting costs a parser its stack."""
    if len(text) > limits.schema_bytes:
        found.append(Violation(at, f"is longer than {limits.schema_bytes} characters"))
        return
    try:
        schema = orjson.loads(text)
    except orjson.JSONDecodeError:
        # Also what is nested deeper than the parser itself goes.
        found.append(Violation(at, "is not JSON"))
        return
    if not isinstance(schema, dict):
        found.append(Violation(at, "is not a JSON object"))
    elif _deeper(schema, limits.schema_depth):
        found.append(Violation(at, f"is nested deeper than {limits.schema_depth} levels"))


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


def _routing(routing: pb.Routing, found: list[Violation]) -> None:
    if routing.residency not in _RESIDENCIES:
        found.append(Violation("routing.residency", "is not a known value"))
    if routing.priority not in _PRIORITIES:
        found.append(Violation("routing.priority", "is not a known value"))
    if routing.HasField("ttft_slo") and routing.ttft_slo.ToNanoseconds() <= 0:
        found.append(Violation("routing.ttft_slo", "must be above zero"))
    if routing.HasField("max_cost_microusd") and routing.max_cost_microusd < 0:
        found.append(Violation("routing.max_cost_microusd", "must not be negative"))
    if len(routing.affinity_key) > 256:
        found.append(Violation("routing.affinity_key", "is longer than 256 characters"))
    if len(routing.backend_id) > 256:
        found.append(Violation("routing.backend_id", "is longer than 256 characters"))
