"""Builds a GenerateRequest from Python arguments whose names equal the contract's fields.

Checks only what cannot be expressed on the wire (unknown names, wrong types); ranges and
caps are the service's to judge, which lists every violation at once.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from google.protobuf.duration_pb2 import Duration

from anabranch.v1 import generation_pb2 as pb
from anabranch.vocabulary import Priority, ReasoningEffort, Residency, Role, ToolChoiceMode

MessageLike = str | Mapping[str, Any] | pb.Message
ToolLike = Mapping[str, Any] | pb.Tool


class RequestOptions(TypedDict, total=False):
    """Every keyword of generate, stream, count_tokens and explain; see build_request."""

    model: str
    prompt: str
    messages: str | Sequence[MessageLike]
    prompt_token_ids: Sequence[int]
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str]
    n: int | None
    logprobs: int | None
    ignore_eos: bool | None
    min_tokens: int | None
    tools: Sequence[ToolLike]
    tool_choice: str | pb.ToolChoice | None
    response_format: str | Mapping[str, Any] | pb.ResponseFormat | None
    reasoning: str | bool | pb.Reasoning | None
    residency: Residency | str | None
    priority: Priority | str | None
    ttft_slo: float | None
    max_cost_microusd: int | None
    affinity_key: str
    backend_id: str
    request_id: str
    labels: Mapping[str, str]
    continuation: pb.Continuation | None
    timeout: float | None


def build_request(
    *,
    model: str = "",
    prompt: str = "",
    messages: str | Sequence[MessageLike] = (),
    prompt_token_ids: Sequence[int] = (),
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    n: int | None = None,
    logprobs: int | None = None,
    ignore_eos: bool | None = None,
    min_tokens: int | None = None,
    tools: Sequence[ToolLike] = (),
    tool_choice: str | pb.ToolChoice | None = None,
    response_format: str | Mapping[str, Any] | pb.ResponseFormat | None = None,
    reasoning: str | bool | pb.Reasoning | None = None,
    residency: Residency | str | None = None,
    priority: Priority | str | None = None,
    ttft_slo: float | None = None,
    max_cost_microusd: int | None = None,
    affinity_key: str = "",
    backend_id: str = "",
    request_id: str = "",
    labels: Mapping[str, str] | None = None,
    continuation: pb.Continuation | None = None,
    timeout: float | None = None,
) -> pb.GenerateRequest:
    """Builds a request.

    messages: one string (a user turn) or a sequence of strings, mappings such as
    `{"role": "system", "content": "…"}` and Message protos. tools: mappings with `name`,
    `description` and `parameters` (a JSON Schema). tool_choice: "auto", "none", "required" or a
    tool's name. response_format: "text", "json_object", or a mapping with one of `json_schema`,
    `regex`, `choice`, `grammar`. reasoning: an effort ("none" … "high"), or False to leave the
    reasoning out of the answer. ttft_slo and timeout: seconds. request_id: made up when empty,
    so that a repeated dispatch is recognised.

    Raises ValueError for an unknown name and TypeError for a value of the wrong type.
    """
    request = pb.GenerateRequest(
        model=model,
        prompt=prompt,
        prompt_token_ids=prompt_token_ids,
        request_id=request_id or f"req-{uuid.uuid4().hex}",
        labels=labels or {},
        continuation=continuation,
        timeout=_duration(timeout),
        messages=[message(m) for m in ([messages] if isinstance(messages, str) else messages)],
        tools=[_tool(t) for t in tools],
    )
    sampling = pb.Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=[stop] if isinstance(stop, str) else stop,
        n=n,
        logprobs=logprobs,
        ignore_eos=ignore_eos,
        min_tokens=min_tokens,
    )
    routing = pb.Routing(
        residency=int(Residency.parse(residency)) if residency else None,  # type: ignore[arg-type]
        priority=int(Priority.parse(priority)) if priority else None,  # type: ignore[arg-type]
        ttft_slo=_duration(ttft_slo),
        max_cost_microusd=max_cost_microusd,
        affinity_key=affinity_key,
        backend_id=backend_id,
    )
    if sampling.ByteSize():
        request.sampling.CopyFrom(sampling)
    if routing.ByteSize():
        request.routing.CopyFrom(routing)
    if tool_choice is not None:
        request.tool_choice.CopyFrom(_tool_choice(tool_choice))
    if response_format is not None:
        request.response_format.CopyFrom(_response_format(response_format))
    if reasoning is not None:
        request.reasoning.CopyFrom(_reasoning(reasoning))
    return request


def message(value: MessageLike) -> pb.Message:
    """Makes a turn: a string is the user's; a mapping names `role` and `content`.

    `content` is a string or a list of strings, `{"text": …}`, `{"image": {"data" or "uri": …,
    "media_type": …}}` and ContentPart protos. Raises ValueError or TypeError.
    """
    if isinstance(value, pb.Message):
        return value
    if isinstance(value, str):
        return message({"role": Role.USER, "content": value})
    if not isinstance(value, Mapping):
        raise TypeError(f"a message is a str, a mapping or a Message, not {type(value).__name__}")
    fields = dict(value)
    if "role" not in fields:
        raise ValueError('a message needs a "role"')
    turn = pb.Message(role=int(Role.parse(fields.pop("role"))))  # type: ignore[arg-type]
    content = fields.pop("content", None) or ()
    for part in [content] if isinstance(content, str) else content:
        turn.content.append(_part(part))
    for call in fields.pop("tool_calls", ()):
        turn.tool_calls.append(call if isinstance(call, pb.ToolCall) else pb.ToolCall(**call))
    for state in fields.pop("reasoning_state", ()):
        turn.reasoning_state.append(state)
    turn.tool_call_id = fields.pop("tool_call_id", "")
    if fields:
        raise ValueError(f"a message has no {', '.join(map(repr, fields))}")
    return turn


def _part(part: str | Mapping[str, Any] | pb.ContentPart) -> pb.ContentPart:
    if isinstance(part, pb.ContentPart):
        return part
    if isinstance(part, str):
        return pb.ContentPart(text=part)
    if set(part) == {"text"}:
        return pb.ContentPart(text=part["text"])
    if set(part) == {"image"}:
        image = part["image"]
        return pb.ContentPart(image=image if isinstance(image, pb.Image) else pb.Image(**image))
    raise ValueError(f'a content part has "text" or "image", not {", ".join(map(repr, part))}')


def _tool(tool: ToolLike) -> pb.Tool:
    if isinstance(tool, pb.Tool):
        return tool
    fields = dict(tool)
    schema = fields.pop("parameters", None) or fields.pop("parameters_json_schema", "")
    made = pb.Tool(
        name=fields.pop("name", ""),
        description=fields.pop("description", ""),
        parameters_json_schema=schema if isinstance(schema, str) else json.dumps(schema),
    )
    if fields:
        raise ValueError(f"a tool has no {', '.join(map(repr, fields))}")
    return made


def _tool_choice(choice: str | pb.ToolChoice) -> pb.ToolChoice:
    if isinstance(choice, pb.ToolChoice):
        return choice
    if choice in ToolChoiceMode.names():
        return pb.ToolChoice(mode=int(ToolChoiceMode.parse(choice)))  # type: ignore[arg-type]
    return pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED, name=choice)


def _response_format(form: str | Mapping[str, Any] | pb.ResponseFormat) -> pb.ResponseFormat:
    if isinstance(form, pb.ResponseFormat):
        return form
    if form == "text":
        return pb.ResponseFormat(text=pb.ResponseFormat.FreeText())
    if form == "json_object":
        return pb.ResponseFormat(json_object=pb.ResponseFormat.JsonObject())
    if isinstance(form, Mapping) and len(form) == 1:
        kind, value = next(iter(form.items()))
        if kind == "json_schema":
            text = value if isinstance(value, str) else json.dumps(value)
            return pb.ResponseFormat(json_schema=text)
        if kind == "choice":
            return pb.ResponseFormat(choice=pb.ResponseFormat.Choice(options=value))
        if kind in ("regex", "grammar"):
            return pb.ResponseFormat(**{kind: value})
    raise ValueError(
        'response_format is "text", "json_object", or a mapping with one of '
        "json_schema, regex, choice, grammar"
    )


def _reasoning(wish: str | bool | pb.Reasoning) -> pb.Reasoning:
    if isinstance(wish, pb.Reasoning):
        return wish
    if isinstance(wish, bool):
        return pb.Reasoning(include=wish)
    return pb.Reasoning(effort=int(ReasoningEffort.parse(wish)))  # type: ignore[arg-type]


def _duration(value: float | None) -> Duration | None:
    if value is None:
        return None
    if not math.isfinite(value):
        raise ValueError("a time in seconds must be finite")
    whole, nanos = divmod(round(value * 1e9), 1_000_000_000)
    return Duration(seconds=whole, nanos=nanos)
