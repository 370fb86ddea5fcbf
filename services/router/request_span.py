"""What the span of a request in the router says at its end: how it went, attempt by attempt.

Written once, when the request is over, so that a request that is not sampled pays nothing.
"""

from __future__ import annotations

import time

from opentelemetry.trace import Span

from anabranch.v1 import generation_pb2 as pb
from services.chassis.tracing import CANCELLED
from services.router.receipt import ReceiptBuilder

_FINISHES = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_TOOL_CALLS: "tool_calls",
    pb.FINISH_REASON_CONTENT_FILTER: "content_filter",
    pb.FINISH_REASON_CANCELLED: "cancelled",
}


def answered(span: Span, chunk: pb.GenerateChunk, receipt: ReceiptBuilder) -> None:
    """The answer is over, with this last chunk."""
    usage = chunk.usage
    span.set_attributes(
        {
            "gen_ai.response.model": chunk.receipt.served_model,
            "gen_ai.response.finish_reasons": [_FINISHES.get(chunk.finish_reason, "other")],
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
        }
    )
    left = chunk.finish_reason == pb.FINISH_REASON_CANCELLED
    show_attempts(span, receipt, CANCELLED if left else "ok")


def show_attempts(span: Span, receipt: ReceiptBuilder, last: str) -> None:
    """An event for each time that the request was sent to a backend, and for its first token.

    `last` is how the attempt ended that went on to the end.
    """
    span.set_attribute("anabranch.attempts", receipt.attempts)
    if receipt.backend_id:
        span.set_attribute("anabranch.backend", receipt.backend_id)
    if receipt.tier is not None:
        span.set_attribute("anabranch.tier", receipt.tier.value)
    if receipt.overflow is not None:
        span.set_attribute("anabranch.overflow_reason", receipt.overflow.value)
    if receipt.resumes:
        span.set_attribute("anabranch.resumes", receipt.resumes)
    arrived = time.time_ns() - int(receipt.elapsed() * 1e9)
    for attempt in receipt.told():
        event: dict[str, str | float | bool] = {
            "anabranch.backend": attempt.backend_id,
            "anabranch.tier": attempt.tier.value,
            "anabranch.outcome": attempt.error or last,
            "anabranch.seconds": attempt.seconds,
        }
        if attempt.hedge:
            event["anabranch.hedge"] = True
        span.add_event("anabranch.attempt", event, arrived + int(attempt.after * 1e9))
    if receipt.ttft is not None:
        span.add_event("anabranch.first_token", None, arrived + int(receipt.ttft * 1e9))
