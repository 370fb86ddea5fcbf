"""Texts into vectors on vLLM's AsyncLLM, as a pooling model. Imports vLLM for its parameters only.

Each text is a request of vLLM's own, through its public stream: it batches them as it finds room.
How many may be on their way at once is for the caller to bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault, Violation, Work, fault_of, internal, invalid
from services.local_engine.chat_turns import unsupported
from services.local_engine.engine import Embeddings, EmbedJob, Finish, Job, OnDelta, OnFail
from services.local_engine.job_output import JobOutput
from services.local_engine.load_meter import LoadMeter
from services.local_engine.on_vllm.chat_tokenizer import ChatTokenizer

_DIED = "the engine has died"


@dataclass(frozen=True, slots=True)
class VectorSizes:
    """The sizes of vector that a model has: its own, and shorter ones where it was trained for
    them (Matryoshka, Kusupati et al. 2022): those listed, or any if it lists none."""

    own: int
    shortens: bool = False
    listed: tuple[int, ...] = ()

    def check(self, wanted: int | None) -> int | None:
        """What to ask the model for. Raises Fault UNSUPPORTED and INVALID_REQUEST."""
        if wanted is None or (wanted == self.own and not self.shortens):
            return None
        if not self.shortens:
            raise unsupported(
                "dimensions", f"this model's vectors cannot be shortened: they have {self.own}"
            )
        sizes = sorted({*self.listed, self.own}) if self.listed else []
        if wanted > self.own or (sizes and wanted not in sizes):
            given = f"one of {', '.join(map(str, sizes))}" if sizes else f"at most {self.own}"
            raise invalid([Violation("dimensions", f"must be {given}")])
        return None if wanted == self.own else wanted


class VllmEmbedder:
    """Embeds on one AsyncLLM. `new_params` makes vLLM's PoolingParams for a vector size.

    `refusals` are what vLLM raises for a bad request; `on_begin` is called when it gets work
    after it had none. `lower` says that the model was trained on lower case.
    """

    def __init__(
        self,
        llm: Any,
        tokenizer: ChatTokenizer,
        meter: LoadMeter,
        new_params: Callable[[int | None], Any],
        refusals: tuple[type[Exception], ...],
        on_begin: Callable[[], None],
        *,
        sizes: VectorSizes,
        context_length: int,
        lower: bool,
    ) -> None:
        self._llm = llm
        self._tokenizer = tokenizer
        self._meter = meter
        self._new_params = new_params
        self._refusals = refusals
        self._on_begin = on_begin
        self._sizes = sizes
        self._context_length = context_length
        self._lower = lower
        self._tasks: set[asyncio.Task[Any]] = set()
        self._given_up = ""

    async def embed(self, job: EmbedJob) -> Embeddings:
        """Embeds every text of the job. Raises Fault; see Engine.embed."""
        dimensions = self._sizes.check(job.dimensions)
        prompts = await self._tokenizer.encode_each(job.texts, lower=self._lower)
        self._check_lengths(prompts)
        if not self._tasks:
            self._on_begin()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    self._begin(group, f"{job.id}-{place}", prompt, dimensions)
                    for place, prompt in enumerate(prompts)
                ]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return Embeddings([task.result() for task in tasks], sum(map(len, prompts)))

    async def answer_probe(self, job: Job, on_delta: OnDelta, on_fail: OnFail) -> None:
        """Ends a job without a token once its prompt is embedded: so much can be asked of a model
        that generates nothing, to see whether it works."""
        output = JobOutput(job, on_delta, on_fail)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._one(job.id, list(job.prompt_token_ids), None)
            output.emit(0, (), "", finish=Finish.LENGTH)
        except Fault as fault:
            output.fail(fault)
        finally:
            self._tasks.discard(task)

    def give_up(self, why: str) -> None:
        """Fails every text, and each later one; what vLLM makes of it does not matter."""
        self._given_up = why
        for task in tuple(self._tasks):
            task.cancel()

    def _check_lengths(self, prompts: Sequence[Sequence[int]]) -> None:
        for index, prompt in enumerate(prompts):
            if len(prompt) > self._context_length:
                raise Fault(
                    errors_pb2.ERROR_REASON_CONTEXT_LENGTH_EXCEEDED,
                    f"inputs[{index}] has {len(prompt)} tokens, "
                    f"but the model's context holds {self._context_length}",
                    metadata={
                        "index": str(index),
                        "prompt_tokens": str(len(prompt)),
                        "context_length": str(self._context_length),
                    },
                )

    def _begin(
        self, group: asyncio.TaskGroup, request_id: str, prompt: list[int], dimensions: int | None
    ) -> asyncio.Task[list[float]]:
        task = group.create_task(self._one(request_id, prompt, dimensions), name=request_id)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _one(self, request_id: str, prompt: list[int], dimensions: int | None) -> list[float]:
        if self._given_up or self._llm.errored:
            raise _lost(self._given_up or _DIED, Work.NOT_DISPATCHED)
        load = self._meter.admit(len(prompt), 1)
        try:
            values = await self._vector(request_id, prompt, self._new_params(dimensions))
            load.prefilled()
        except asyncio.CancelledError:
            if self._given_up:
                raise _lost(self._given_up, Work.MAYBE_BILLED) from None
            raise
        except Exception as error:
            raise self._fault(error) from error
        finally:
            load.end()
        if not all(map(math.isfinite, values)):
            raise internal(ValueError("a vector with numbers that are not finite"))
        return values

    async def _vector(self, request_id: str, prompt: list[int], params: Any) -> list[float]:
        tokens = {"type": "token", "prompt_token_ids": prompt}
        values: list[float] = []
        # Closed in any case, so that a text whose caller is gone is taken back at once.
        async with contextlib.aclosing(self._llm.encode(tokens, params, request_id)) as outputs:
            async for output in outputs:
                values = output.outputs.data.tolist()
        return values

    def _fault(self, error: Exception) -> Fault:
        if self._llm.errored:
            return _lost(_DIED, Work.MAYBE_BILLED)
        if isinstance(error, self._refusals):
            return invalid([Violation("inputs", f"the engine refuses one: {error}")])
        return fault_of(error)


def _lost(why: str, work: Work) -> Fault:
    return Fault(errors_pb2.ERROR_REASON_BACKEND_LOST, why, work=work)


def embedder_for(
    llm: Any,
    model: Any,
    tokenizer: ChatTokenizer,
    meter: LoadMeter,
    refusals: tuple[type[Exception], ...],
    on_begin: Callable[[], None],
) -> VllmEmbedder:
    """The embedder of a pooling model that vLLM has loaded; `model` is vLLM's ModelConfig."""
    from vllm.pooling_params import PoolingParams

    def new_params(dimensions: int | None) -> Any:
        # Whether vectors are normalised is for the model's own configuration to say.
        return PoolingParams(task="embed", dimensions=dimensions)

    sizes = VectorSizes(
        int(model.embedding_size),
        shortens=bool(model.is_matryoshka),
        listed=tuple(model.matryoshka_dimensions or ()),
    )
    return VllmEmbedder(
        llm,
        tokenizer,
        meter,
        new_params,
        refusals,
        on_begin,
        sizes=sizes,
        context_length=int(model.max_model_len),
        lower=bool((model.encoder_config or {}).get("do_lower_case")),
    )
