"""Maps between the engine's values and what vLLM calls them. Pure: does not import vLLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from services.local_engine.engine import (
    Candidate,
    Constraint,
    ConstraintKind,
    Finish,
    Job,
    SamplingSpec,
)
from services.local_engine.on_vllm.seeding import Seeding, seed_arguments

MAX_ALTERNATIVES = 20
"""Alternatives a token that a request may ask for; vLLM must be configured for one more."""


def sampling_arguments(
    job: Job,
    defaults: Mapping[str, Any],
    *,
    detokenize: bool,
    seeding: Seeding = Seeding.COUNTED,
) -> dict[str, Any]:
    """Keyword arguments of vLLM's SamplingParams, without the enums of its own.

    `defaults` are the model's own (its generation_config), used where the request says nothing.
    With `detokenize` off the caller makes text and finds stop strings itself.
    """
    spec = job.sampling
    existing = len(job.continuation.token_ids)
    arguments: dict[str, Any] = dict(defaults)
    for name in (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
    ):
        value = getattr(spec, name)
        if value is not None:
            arguments[name] = value
    arguments["n"] = spec.n
    arguments["max_tokens"] = job.max_tokens
    arguments["min_tokens"] = min(max(0, spec.min_tokens - existing), job.max_tokens)
    arguments["ignore_eos"] = spec.ignore_eos
    arguments["detokenize"] = detokenize
    if spec.special_tokens:
        arguments["skip_special_tokens"] = False
    if spec.seed is not None:
        arguments |= seed_arguments(seeding, spec.seed, existing, arguments)
    if spec.stop and detokenize:
        arguments["stop"] = list(spec.stop)
    if spec.logprobs is not None:
        # vLLM counts the sampled token among the most likely ones; the contract does not.
        arguments["logprobs"] = spec.logprobs + 1 if spec.logprobs else 0
    return arguments


def constraint_arguments(constraint: Constraint) -> dict[str, Any]:
    """Keyword arguments of vLLM's StructuredOutputsParams."""
    match constraint.kind:
        case ConstraintKind.JSON_OBJECT:
            return {"json_object": True}
        case ConstraintKind.JSON_SCHEMA:
            return {"json": constraint.text}
        case ConstraintKind.REGEX:
            return {"regex": constraint.text}
        case ConstraintKind.CHOICE:
            return {"grammar": choice_grammar(constraint.options)}
        case ConstraintKind.GRAMMAR:
            return {"grammar": constraint.text}
        case ConstraintKind.STRUCTURAL_TAG:
            return {"structural_tag": constraint.text}


def reasoning_arguments(spec: SamplingSpec) -> dict[str, Any]:
    """Keyword arguments of vLLM's `generate` that say from when on a constraint holds.

    With a reasoning parser vLLM waits for the reasoning's end, which a prompt outside of the chat
    template never comes to.
    """
    if spec.constraint is None:
        return {}
    if spec.thinking is None:
        return {"reasoning_ended": True}
    return {"reasoning_parser_kwargs": {"chat_template_kwargs": dict(spec.thinking)}}


def choice_grammar(options: Sequence[str]) -> str:
    """The EBNF grammar of one of these strings.

    Versions of vLLM make one themselves, and differ in what they do about control characters.
    """
    return "root ::= " + " | ".join(f'"{_quoted(option)}"' for option in options)


def _quoted(option: str) -> str:
    return "".join(
        f"\\u{ord(c):04x}" if ord(c) < 0x20 or ord(c) == 0x7F else f"\\{c}" if c in '\\"' else c
        for c in option
    )


def finish_of(reason: str | None) -> Finish | None:
    """The end that vLLM reports; None while it goes on. Raises ValueError for an engine error."""
    match reason:
        case None:
            return None
        case "stop" | "repetition":
            return Finish.STOP
        case "length":
            return Finish.LENGTH
        case "abort":
            return Finish.CANCELLED
    raise ValueError(f"vLLM ended the request with {reason!r}")


def candidates_of(
    token_ids: Sequence[int],
    logprobs: Sequence[Mapping[int, Any] | None] | None,
    alternatives: int | None,
    text_of: Callable[[int], str],
) -> tuple[tuple[Candidate, ...], ...]:
    """The sampled token of each position, then its alternatives, most likely first.

    `logprobs` holds, for each token, objects with `logprob` and `decoded_token` by token id.
    """
    if alternatives is None or not logprobs:
        return ()
    return tuple(
        _position(token_id, entries or {}, alternatives, text_of)
        for token_id, entries in zip(token_ids, logprobs, strict=False)
    )


def _position(
    sampled: int, entries: Mapping[int, Any], alternatives: int, text_of: Callable[[int], str]
) -> tuple[Candidate, ...]:
    def candidate(token_id: int, entry: Any) -> Candidate:
        text = entry.decoded_token
        return Candidate(token_id, text_of(token_id) if text is None else text, entry.logprob)

    others = sorted(
        (item for item in entries.items() if item[0] != sampled),
        key=lambda item: -float(item[1].logprob),
    )
    first = (candidate(sampled, entries[sampled]),) if sampled in entries else ()
    return first + tuple(candidate(*item) for item in others[:alternatives])
