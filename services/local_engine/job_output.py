"""The output side of one running job: positions, usage, and exactly one end. Pure bookkeeping.

Shared by the engines, so that they count alike. What the tokens are is theirs to say.
"""

from __future__ import annotations

from collections.abc import Sequence

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault, Work
from services.local_engine.engine import Candidate, Delta, Finish, Job, OnDelta, OnFail, TokenUsage


class JobOutput:
    """Emits the deltas of a job, numbers their tokens and adds up its usage."""

    __slots__ = (
        "_cached",
        "_counts",
        "_on_delta",
        "_on_fail",
        "_open",
        "_started",
        "_waits",
        "ended",
        "job",
    )

    def __init__(self, job: Job, on_delta: OnDelta, on_fail: OnFail) -> None:
        self.job = job
        self._on_delta = on_delta
        self._on_fail = on_fail
        existing = len(job.continuation.token_ids)
        self._counts = [existing] * job.sampling.n
        self._open = set(range(job.sampling.n))
        self._started = False
        self._cached: int | None = None
        self._waits: tuple[float, float] | None = None
        self.ended = False

    @property
    def started(self) -> bool:
        """Whether anything has been emitted."""
        return self._started

    @property
    def new_tokens(self) -> int:
        """Tokens emitted so far, over all choices."""
        return sum(self._counts) - len(self._counts) * len(self.job.continuation.token_ids)

    def runs(self, index: int) -> bool:
        """Whether choice `index` has not ended."""
        return not self.ended and index in self._open

    def found_cached(self, tokens: int) -> None:
        """A choice found so many tokens of the prompt in the cache.

        The least of all choices is what the job found: others find what the first has computed.
        """
        self._cached = tokens if self._cached is None else min(self._cached, tokens)

    def waited(self, queued: float, prefill: float) -> None:
        """How long its first choice waited and was read, in seconds; later ones say nothing."""
        self._waits = self._waits or (queued, prefill)

    def emit(
        self,
        index: int,
        token_ids: Sequence[int],
        text: str,
        *,
        logprobs: Sequence[Sequence[Candidate]] = (),
        finish: Finish | None = None,
        matched_stop: str = "",
    ) -> None:
        """Hands on what choice `index` produced; dropped once the choice has ended."""
        if self.ended or index not in self._open:
            return
        self._started = True
        first = self._counts[index]
        self._counts[index] = first + len(token_ids)
        usage = None
        if finish is not None:
            self._open.discard(index)
            if not self._open:
                self.ended = True
                usage = self._usage(partial=finish is Finish.CANCELLED)
        self._on_delta(Delta(index, first, text, token_ids, logprobs, finish, matched_stop, usage))

    def advance(self, tokens: int) -> int:
        """Counts tokens of the first choice that left as no delta; returns their position."""
        counts = self._counts
        first = counts[0]
        counts[0] = first + tokens
        return first

    def cancel(self) -> None:
        """Ends every open choice as cancelled."""
        for index in sorted(self._open):
            self.emit(index, (), "", finish=Finish.CANCELLED)

    def fail(self, fault: Fault) -> None:
        """Ends the job with a failure."""
        if self.ended:
            return
        self.ended = True
        self._on_fail(fault.after(Work.OUTPUT_SEEN) if self._started else fault)

    def lost(self, why: str) -> Fault:
        """What a job fails with whose engine is gone: how far it came, so that it is resumed."""
        return Fault(
            errors_pb2.ERROR_REASON_BACKEND_LOST,
            why,
            work=Work.OUTPUT_SEEN if self._started else Work.MAYBE_BILLED,
            metadata={"tokens_delivered": str(self.new_tokens)},
        )

    def _usage(self, *, partial: bool) -> TokenUsage:
        return TokenUsage(
            prompt=len(self.job.prompt_token_ids),
            cached_prompt=min(self._cached or 0, len(self.job.prompt_token_ids)),
            completion=sum(self._counts),
            partial=partial,
            queued=None if self._waits is None else self._waits[0],
            prefill=None if self._waits is None else self._waits[1],
        )
