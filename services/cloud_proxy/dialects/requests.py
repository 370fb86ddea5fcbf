"""What encoding a request has in common for all dialects: refusals, sampling, schemas, paths.

Nothing is left out silently: what the provider cannot honour is refused by name, except for what
its profile says to drop, which is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import orjson

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Violation, invalid
from services.cloud_proxy.config import Route
from services.cloud_proxy.profiles import REFUSED

_SCALARS = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "seed", "n", "ignore_eos", "min_tokens",
)  # fmt: skip
# Values that ask for nothing: not sending them is honouring them.
_NEUTRAL: Mapping[str, tuple[float, ...]] = {
    "top_k": (0, -1),
    "min_p": (0.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "n": (1,),
    "ignore_eos": (False,),
    "min_tokens": (0,),
}
_EFFORTS = {
    pb.REASONING_EFFORT_NONE: "none",
    pb.REASONING_EFFORT_LOW: "low",
    pb.REASONING_EFFORT_MEDIUM: "medium",
    pb.REASONING_EFFORT_HIGH: "high",
}
JSON_HEADERS: Mapping[str, str] = {"Content-Type": "application/json"}


def unsupported(feature: str, why: str) -> Fault:
    """The refusal of what this provider or model cannot do."""
    return Fault(
        errors_pb2.ERROR_REASON_UNSUPPORTED, f"{feature}: {why}", metadata={"feature": feature}
    )


def refuse_raw_prompts(request: pb.GenerateRequest, route: Route) -> None:
    """Raises Fault for input that no chat API takes, and for log-probabilities."""
    name = route.profile.name
    if request.prompt_token_ids:
        raise unsupported("prompt_token_ids", f"{name} takes messages only")
    if request.prompt:
        raise unsupported("prompt", f"{name} puts every prompt into its chat template")
    if request.sampling.HasField("logprobs"):
        raise unsupported("sampling.logprobs", f"{name} does not give token ids with them")


def refuse_late_system(turns: Sequence[object], at: str, route: Route) -> None:
    """Raises Fault for a system message after the conversation began, for APIs that keep system
    text apart: moved to the front it would say something else."""
    if turns:
        raise unsupported(
            "messages", f"{route.name} takes system messages before all others only ({at})"
        )


def require(feature: str, capability: str, route: Route, why: str) -> None:
    """Raises Fault unless the model has the capability."""
    if capability not in route.model.capabilities:
        raise unsupported(feature, f"{route.name} {why}")


def path_for(template: str, route: Route) -> str:
    """A profile's path with the model's name in it, percent-encoded."""
    return template.replace("{model}", quote(route.model.name, safe=""))


def sampling(
    request: pb.GenerateRequest, route: Route, max_tokens: int | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The sampling parameters under the provider's names, and the names of dropped ones.

    `max_tokens` overrides the request's own. Raises Fault UNSUPPORTED.
    """
    asked: dict[str, Any] = {
        name: getattr(request.sampling, name)
        for name in _SCALARS
        if request.sampling.HasField(name)
    }
    if max_tokens is not None:
        asked["max_tokens"] = max_tokens
    if request.sampling.stop:
        asked["stop"] = list(request.sampling.stop)
    ignored = route.profile.reasoning.ignores if thinks(request, route) else frozenset()
    sent: dict[str, Any] = {}
    dropped = []
    for name, value in asked.items():
        rule = route.model.parameters.get(name, REFUSED)
        if rule.rule == "send" and name in ignored:
            dropped.append(name)
        elif rule.rule == "send":
            _check_range(name, value, rule.minimum, rule.maximum, route)
            sent[rule.name] = _shortest(value)
        elif value in _NEUTRAL.get(name, ()):
            continue
        elif rule.rule == "drop":
            dropped.append(name)
        else:
            raise unsupported(f"sampling.{name}", f"{route.name} has no such parameter")
    return sent, tuple(dropped)


def thinks(request: pb.GenerateRequest, route: Route) -> bool:
    """Whether the model will reason about this request."""
    effort = request.reasoning.effort
    if effort == pb.REASONING_EFFORT_NONE or "reasoning" not in route.model.capabilities:
        return False
    if effort != pb.REASONING_EFFORT_UNSPECIFIED:
        return True
    return route.profile.reasoning.on_by_default or "default" in route.model.effort


def reasoning(request: pb.GenerateRequest, route: Route) -> Mapping[str, Any]:
    """What the wished effort adds to the body, by the model's or the provider's own rules.

    Raises Fault UNSUPPORTED.
    """
    able = "reasoning" in route.model.capabilities
    effort = _EFFORTS.get(request.reasoning.effort)
    if effort is None:
        return route.model.effort.get("default", {}) if able else {}
    settings = route.model.effort.get(effort, route.profile.reasoning.effort.get(effort))
    if settings is not None and able:
        return settings
    if effort == "none" and not able:
        # What a model without reasoning does anyway.
        return {}
    raise unsupported("reasoning.effort", f"{route.name} cannot be told how much to reason")


def merge(body: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Puts `more` into `body`; objects that are in both are merged."""
    for name, value in more.items():
        present = body.get(name)
        if isinstance(present, dict) and isinstance(value, Mapping):
            merge(present, value)
        else:
            # A copy: what comes from a profile is shared by all requests.
            body[name] = _copy(value)


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def append_turn(turns: list[dict[str, Any]], role: str, content: list[dict[str, Any]]) -> None:
    """Adds a turn, or to the last one, for APIs whose turns alternate: results of one turn's calls
    must come back together. An empty turn says nothing, and such APIs take none."""
    if not content:
        return
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"] += content
    else:
        turns.append({"role": role, "content": content})


def schema(text: str, at: str) -> dict[str, Any]:
    """A JSON schema. Raises Fault INVALID_REQUEST."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise invalid([Violation(at, "is not JSON")]) from None
    if not isinstance(found, dict):
        raise invalid([Violation(at, "is not a JSON object")])
    return found


def arguments(text: str, at: str) -> dict[str, Any]:
    """A call's arguments as an object, for dialects that want them so. Raises Fault."""
    return schema(text or "{}", at)


def serialised(body: dict[str, Any]) -> bytes:
    """The body as JSON. Raises Fault INVALID_REQUEST for what can be read but not written."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        # Schemas and arguments come from the caller, and can be read deeper than written.
        raise invalid([Violation("messages", "or tools are nested too deeply")]) from None


def check_tool_choice(choice: pb.ToolChoice, route: Route) -> str:
    """How tools are to be used: auto, none, required or named. Raises Fault UNSUPPORTED."""
    wish = "auto"
    if choice.mode == pb.ToolChoice.MODE_NONE:
        wish = "none"
    elif choice.mode == pb.ToolChoice.MODE_REQUIRED:
        wish = "named" if choice.name else "required"
    if wish not in route.profile.tool_choice:
        whys = {
            "none": "be kept from calling tools",
            "required": "be made to call a tool",
            "named": "be made to call a certain tool",
        }
        raise unsupported("tool_choice", f"{route.name} cannot {whys.get(wish, 'decide itself')}")
    return wish


def check_response_format(wanted: pb.ResponseFormat, route: Route) -> str | None:
    """The kind of form wanted, None for free text. Raises Fault UNSUPPORTED."""
    kind: str | None = wanted.WhichOneof("format")
    if kind is None or kind == "text":
        return None
    if (
        kind not in route.profile.response_formats
        or "structured_output" not in route.model.capabilities
    ):
        raise unsupported(f"response_format.{kind}", f"{route.name} cannot be held to it")
    return kind


def _check_range(
    name: str, value: Any, minimum: float | None, maximum: float | None, route: Route
) -> None:
    size = len(value) if isinstance(value, list) else value
    if (minimum is not None and size < minimum) or (maximum is not None and size > maximum):
        low = f"from {minimum:g} " if minimum is not None else ""
        high = f"up to {maximum:g}" if maximum is not None else "up"
        kind = "entries" if isinstance(value, list) else "is what"
        raise unsupported(f"sampling.{name}", f"{low}{high} {kind} {route.name} takes")


def _shortest(value: Any) -> Any:
    """Floats as the caller wrote them: 0.7 travels as a 32-bit float and must not become
    0.699999988."""
    return float(f"{value:.7g}") if isinstance(value, float) else value
