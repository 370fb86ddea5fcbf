"""Whether a request may wait for the engine at all, by its size and by what waits. Pure.

What is decided here is decided before anything is allocated for the request.
"""

from __future__ import annotations

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.local_engine.engine import EngineLoad, ModelFacts

_RETRY_BOUNDS_S = (0.1, 60.0)
_RETRY_UNKNOWN_S = 1.0


def check_bytes(request: pb.GenerateRequest, facts: ModelFacts) -> None:
    """Refuses, before it is tokenised, a text that cannot fit whatever its tokens are.

    Of a conversation only its last message counts: chat templates leave out parts of earlier
    ones. Raises Fault CONTEXT_LENGTH_EXCEEDED.
    """
    if not facts.token_bytes:
        return
    text = request.prompt
    if request.messages:
        text = "".join(part.text for part in request.messages[-1].content).strip()
    size = len(text.encode()) + (
        0 if request.continuation.token_ids else len(request.continuation.text.encode())
    )
    tokens = -(-size // facts.token_bytes)
    if tokens >= facts.context_length:
        raise _too_long(
            f"its text of {size} bytes is at least {tokens} tokens, "
            f"but the model's context holds {facts.context_length}",
            prompt_tokens=tokens,
            context_length=facts.context_length,
        )


def within_cache(
    max_tokens: int, *, wanted: int | None, n: int, prompt_tokens: int, kv_tokens: int
) -> int:
    """New tokens a choice, so that all choices of a request fit the KV cache at once.

    Choices that do not would push each other out, again and again, and everybody else with them.
    They share the prompt. A bound that the request does not give (`wanted`) is lowered; one that
    it gives and that cannot be kept raises Fault CONTEXT_LENGTH_EXCEEDED. One choice always fits:
    no engine starts with a cache smaller than its context.
    """
    if n <= 1 or kv_tokens <= 0:
        return max_tokens
    each = (kv_tokens - prompt_tokens) // n
    if each < max(1, wanted or 1):
        raise _too_long(
            f"{n} choices of {wanted or 'at least 1'} tokens after a prompt of {prompt_tokens} "
            f"cannot be held at once: the KV cache holds {kv_tokens}",
            prompt_tokens=prompt_tokens,
            context_length=kv_tokens,
        )
    return min(max_tokens, each)


def check_queue(load: EngineLoad, tokens: int, most: int) -> None:
    """Raises Fault OVERLOADED when so many more prompt tokens would make more than `most` wait.

    When to retry follows from how fast prompts are read. What finds nobody waiting may be as long
    as it likes; `most` 0 sets no bound.
    """
    queued = load.queued_prefill_tokens
    if not most or not queued or queued + tokens <= most:
        return
    raise Fault(
        errors_pb2.ERROR_REASON_OVERLOADED,
        f"{queued} tokens of prompts wait here already",
        retry_after=_seconds_to_read(load, queued + tokens - most),
    )


def _seconds_to_read(load: EngineLoad, tokens: int) -> float:
    if load.step_time <= 0 or load.prefill_tokens_per_step <= 0:
        return _RETRY_UNKNOWN_S
    low, high = _RETRY_BOUNDS_S
    return min(high, max(low, tokens * load.step_time / load.prefill_tokens_per_step))


def _too_long(message: str, *, prompt_tokens: int, context_length: int) -> Fault:
    return Fault(
        errors_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
        message,
        metadata={
            "prompt_tokens": str(prompt_tokens),
            "context_length": str(context_length),
        },
    )
