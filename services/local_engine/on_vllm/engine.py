"""The engine that answers: vLLM in process behind the `Engine` protocol.

How vLLM is configured and started is loading.py's; jobs, tokenizer, mapping and statistics are in
the files beside this one.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.chassis.prefix_log import PrefixLog
from services.local_engine.chat_turns import unsupported
from services.local_engine.engine import (
    AnswerParser,
    Constraint,
    ConstraintKind,
    Delta,
    Embeddings,
    EmbedJob,
    EngineLoad,
    EngineStartError,
    Job,
    Media,
    ModelFacts,
    OnDelta,
    OnFail,
    OnPlain,
    Picture,
    SamplingSpec,
)
from services.local_engine.heartbeat import Heartbeat
from services.local_engine.load_meter import LoadMeter
from services.local_engine.on_vllm.adapters import VllmAdapters
from services.local_engine.on_vllm.core_watch import core_died
from services.local_engine.on_vllm.kv_events import BlockEvents, KvEventSocket
from services.local_engine.on_vllm.loading import Loaded, Seams, load, set_variables
from services.local_engine.on_vllm.model_load import ModelLoad
from services.local_engine.on_vllm.options import VllmOptions, process_variables
from services.local_engine.on_vllm.orphan_guard import OrphanGuard
from services.local_engine.on_vllm.output_ways import outputs_for
from services.local_engine.on_vllm.outputs import Outputs
from services.local_engine.on_vllm.settled import ENVIRONMENT
from services.local_engine.on_vllm.steps import StepRecorder

_log = logging.getLogger(__name__)

_LOST_POLL_S = 0.25
_JOBS = "vllm-jobs"


class VllmEngine:
    """Runs jobs on vLLM's AsyncLLM. There may be several in a process, started one by one."""

    def __init__(
        self,
        options: VllmOptions,
        clock: Callable[[], float] = time.monotonic,
        outputs: Callable[[Any, str], Outputs] = outputs_for,
    ) -> None:
        self._options = options
        self._outputs = outputs
        self._clock = clock
        self._meter = LoadMeter(clock, options.step_model)
        self._recorders: list[StepRecorder] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._events: KvEventSocket | None = None
        self._state: Loaded | None = None
        self._guard: OrphanGuard | None = None
        self._loading: ModelLoad[Loaded] | None = None
        self._cores: list[int] = []
        self._broken = ""

    @property
    def facts(self) -> ModelFacts:
        """The loaded model."""
        return self._loaded.facts

    @property
    def prefixes(self) -> PrefixLog | None:
        """What the prefix cache holds, as vLLM's events tell; None where it tells nothing."""
        names = self._loaded.prefixes
        return None if names is None else names.log

    @property
    def adapters(self) -> VllmAdapters | None:
        """Its LoRA adapters; None while they are switched off."""
        return self._loaded.adapters

    @property
    def heartbeat(self) -> Heartbeat:
        """When vLLM's engine core last told of a step."""
        return self._meter.heartbeat

    async def start(self) -> None:
        """Loads the model, which takes from 15 s to minutes, off the event loop."""
        set_variables(process_variables(self._options))
        logging.getLogger("vllm").setLevel(max(_log.getEffectiveLevel(), logging.WARNING))
        started = self._clock()
        self._guard = OrphanGuard()
        tells = self._options.prefix_events and self._options.tuning.tells_cache
        tells = tells and not self._options.embeds
        self._events = _event_socket() if tells else None
        endpoint = "" if self._events is None else self._events.endpoint
        ENVIRONMENT.loading()
        self._loading = loading = ModelLoad(functools.partial(self._load, endpoint))
        try:
            self._state = await loading.result()
        except Exception as error:
            cause = loading.cause or str(error)
            raise EngineStartError(f"vLLM cannot serve {self._options.model}: {cause}") from error
        finally:
            ENVIRONMENT.loaded(runs=self._state is not None)
        self._loading = None
        self._cores = loading.children()
        self._guard.watch(self._cores)
        self._run(self._state.jobs.run(), _JOBS)
        if self._state.forms is not None:
            self._run(self._state.forms.run(), "form-guard")
        if self._events is not None and self._state.prefixes is not None:
            self._run(self._events.listen(BlockEvents(self._state.prefixes)), "vllm-kv-events")
        await self._warm_up()
        self._meter.forget_pace()
        _log.info("model loaded", extra={"seconds": round(self._clock() - started, 1)})

    async def close(self) -> None:
        """Ends running jobs as cancelled and stops vLLM's processes, which takes some seconds."""
        if self._loading is not None:
            await self._loading.abandon()
            self._loading = None
        state, self._state = self._state, None
        guard, self._guard = self._guard, None
        events, self._events = self._events, None
        if state is not None:
            ENVIRONMENT.closed()
            state.jobs.abort_all()
            tasks = tuple(self._tasks)
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            await asyncio.to_thread(state.llm.shutdown)
        if guard is not None:
            await asyncio.to_thread(guard.close)
        if events is not None:
            events.close()

    async def lost(self) -> str:
        """Waits until vLLM's engine core is dead, or what feeds it here has ended."""
        llm = self._loaded.llm
        await core_died(self._cores, lambda: llm.errored or bool(self._broken), _LOST_POLL_S)
        return self._broken or "vLLM's engine core has died"

    def check_sleep(self) -> None:
        """Raises Fault UNSUPPORTED and NOT_ENABLED."""
        self._loaded.sleep.check()

    async def sleep(self, level: int) -> None:
        """Frees the GPU's memory."""
        await self._loaded.sleep.sleep(level)

    async def wake(self) -> None:
        """Takes it back."""
        await self._loaded.sleep.wake()

    async def encode(self, request: pb.GenerateRequest) -> list[int]:
        """The prompt's token ids."""
        state = self._loaded
        if state.pictures is not None:
            return await state.pictures.encode_text_only(request, state.tokenizer)
        return await state.tokenizer.encode(request)

    async def encode_with_images(
        self, request: pb.GenerateRequest, pictures: Sequence[Picture]
    ) -> tuple[list[int], Media]:
        """The prompt's token ids, and what its images became."""
        renderer = self._loaded.pictures
        if renderer is None:
            raise unsupported("images", "this model does not read images")
        token_ids, media = await renderer.encode(request, pictures)
        assert media is not None
        return token_ids, media

    async def encode_text(self, text: str) -> list[int]:
        """The token ids of plain text."""
        return await self._loaded.tokenizer.encode_text(text)

    def parser_for(self, request: pb.GenerateRequest) -> AnswerParser | None:
        """What takes reasoning and tool calls out of its answers."""
        return self._loaded.answers.parser_for(request)

    async def embed(self, job: EmbedJob) -> Embeddings:
        """Embeds texts, where the model was loaded for that."""
        embedder = self._loaded.embedder
        if embedder is None:
            raise unsupported("embed", "this model does not embed")
        return await embedder.embed(job)

    async def check_form(self, constraint: Constraint, tenant: str) -> None:
        """Has the form judged in a process apart."""
        forms = self._loaded.forms
        if forms is None:
            raise unsupported("response_format", "grammars cannot be compiled for this model")
        await forms.check(constraint, tenant)

    def submit(
        self, job: Job, on_delta: OnDelta, on_fail: OnFail, on_plain: OnPlain | None = None
    ) -> None:
        """Queues the job for vLLM."""
        if self._loaded.embedder is not None:
            self._run(self._loaded.embedder.answer_probe(job, on_delta, on_fail), job.id)
            return
        if self._loaded.pictures is not None and job.continuation:
            self._loaded.pictures.check(job.continuation.token_ids, "continuation")
        self._loaded.jobs.submit(job, on_delta, on_fail, on_plain)

    def abort(self, job_id: str) -> None:
        """Ends a job for its caller now; vLLM hears of it within a step."""
        if self._state is not None:
            self._state.jobs.abort(job_id)

    def give_up(self, why: str) -> None:
        """Fails every job; vLLM's engine core is not asked."""
        if self._state is not None:
            self._state.jobs.give_up(why)
            if self._state.embedder is not None:
                self._state.embedder.give_up(why)

    def load(self) -> EngineLoad:
        """The load as of vLLM's last step."""
        state = self._loaded
        usage = sum(recorder.kv_usage for recorder in self._recorders)
        usage /= max(1, len(self._recorders))
        return self._meter.report(
            running=sum(recorder.running for recorder in self._recorders),
            kv_used_tokens=int(usage * state.kv_total_tokens),
            kv_total_tokens=state.kv_total_tokens,
            max_running=state.facts.max_running,
            prefill_budget=state.prefill_budget,
        )

    @property
    def _loaded(self) -> Loaded:
        if self._state is None:
            raise Fault(
                errors_pb2.ERROR_REASON_MODEL_LOADING, "the model is not loaded", retry_after=2.0
            )
        return self._state

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.append(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Nobody waits for these tasks while the engine runs: what ends one is told here."""
        if task in self._tasks:
            self._tasks.remove(task)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        name = task.get_name()
        _log.error(
            "a task of the engine has failed",
            extra={"task": name, "error": type(error).__name__},
        )
        if name == _JOBS:
            self._broken = f"jobs no longer reach vLLM: {type(error).__name__}"

    def _load(self, events: str) -> Loaded:
        seams = Seams(self._meter, self._outputs, self._new_recorder, self._begun)
        return load(self._options, seams, events=events)

    def _new_recorder(self, config: Any, _engine_index: int = 0) -> StepRecorder:
        budget = int(config.scheduler_config.max_num_batched_tokens)
        each = self._options.tuning.tokens_per_decode
        recorder = StepRecorder(self._meter, self._clock, budget, each)
        self._recorders.append(recorder)
        return recorder

    def _begun(self) -> None:
        if len(self._recorders) == 1:  # which of several engine cores begins is not known
            self._recorders[0].begun()

    async def _warm_up(self) -> None:
        """One tiny job: kernels are loaded, and a model that cannot run is found out now."""
        if self._loaded.embedder is not None:
            try:
                await self._loaded.embedder.embed(EmbedJob("warm-up", ["warm up"]))
            except Fault as fault:
                raise EngineStartError(f"the model is loaded but cannot embed: {fault}") from fault
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_delta(delta: Delta) -> None:
            if delta.usage is not None:
                done.set_result(None)

        prompt = await self.encode_text("warm up")
        # Log-probabilities have kernels of their own, slow only the first time.
        # So has the first answer of a form: the engine core sets up its grammars in a step.
        form = None if self._loaded.forms is None else Constraint(ConstraintKind.JSON_OBJECT)
        spec = SamplingSpec(logprobs=1, constraint=form)
        self.submit(Job("warm-up", prompt, spec, 2), on_delta, done.set_exception)
        try:
            await done
        except Fault as fault:
            raise EngineStartError(f"the model is loaded but cannot run: {fault}") from fault


def _event_socket() -> KvEventSocket | None:
    try:
        return KvEventSocket()
    except OSError as error:
        _log.warning(
            "no socket for events of the KV cache: routers assume what it holds",
            extra={"cause": str(error)},
        )
        return None
