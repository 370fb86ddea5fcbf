"""Answers Embed with an engine: bounds what is on its way, counts and times it.

What a text's vector is, and which sizes there are, is the engine's.
"""

from __future__ import annotations

import itertools
from collections import Counter

from anabranch.v1 import errors_pb2, model_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Violation, invalid
from services.chassis.model_handler import CallContext
from services.chassis.trace_context import sampled_trace
from services.local_engine.chat_turns import unsupported
from services.local_engine.engine import EmbedJob, Engine
from services.local_engine.engine_metrics import EngineMetrics

_BYTES_AROUND_VECTOR = 16


class EmbedDesk:
    """Takes embed requests. Of all callers together `most_texts` are on their way to an engine at
    most; a request that comes alone may have more.

    `max_message_bytes` is what an answer may be large.
    """

    def __init__(self, metrics: EngineMetrics, *, most_texts: int, max_message_bytes: int) -> None:
        self._metrics = metrics
        self._most_texts = most_texts
        self._max_message_bytes = max_message_bytes
        self._texts: Counter[Engine] = Counter()
        self._ids = itertools.count(1)

    async def embed(
        self, engine: Engine, request: model_pb2.EmbedRequest, context: CallContext
    ) -> model_pb2.EmbedResponse:
        """Raises Fault UNSUPPORTED, OVERLOADED, INVALID_REQUEST and what the engine raises."""
        facts = engine.facts
        if pb.CAPABILITY_EMBED not in facts.capabilities:
            raise unsupported("embed", "this model does not embed")
        dimensions = request.dimensions if request.HasField("dimensions") else None
        count = len(request.inputs)
        self._check_size(count, min(dimensions or facts.vector_size, facts.vector_size))
        texts = self._texts[engine]
        if texts and texts + count > self._most_texts:
            raise Fault(
                errors_pb2.ERROR_REASON_OVERLOADED,
                f"{texts} texts are being embedded here already",
                retry_after=1.0,
            )
        trace = sampled_trace(context.traceparent)
        times = self._metrics.request(request.model, trace, operation="embeddings")
        outcome, read = "error", 0
        self._texts[engine] += count
        try:
            job = EmbedJob(f"embed-{next(self._ids)}", tuple(request.inputs), dimensions)
            found = await engine.embed(job)
            outcome, read = "ok", found.prompt_tokens
        finally:
            self._texts[engine] -= count
            if not self._texts[engine]:
                del self._texts[engine]
            times.end(outcome, read, 0)
        answer = model_pb2.EmbedResponse()
        for vector in found.vectors:
            answer.embeddings.add(values=vector)
        answer.usage.prompt_tokens = read
        answer.usage.source = pb.Usage.SOURCE_PROVIDER
        return answer

    def _check_size(self, count: int, size: int) -> None:
        most = self._max_message_bytes // (4 * size + _BYTES_AROUND_VECTOR)
        if count > most:
            wrong = f"{count} vectors of {size} numbers are no message: at most {most} fit one"
            raise invalid([Violation("inputs", wrong)])
