"""The engine that answers: vLLM in process behind the `Engine` protocol.

vLLM is imported only once it starts. Loads and configures it, for vLLM 0.25 to 0.33. Jobs,
tokenizer, mapping and statistics are in the files beside this one.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, fields
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
from services.local_engine.on_vllm import options as vllm_options
from services.local_engine.on_vllm import sampling, seeding
from services.local_engine.on_vllm.adapters import VllmAdapters
from services.local_engine.on_vllm.answer_parsers import (
    AnswerParsers,
    answer_parsers,
    chat_format,
)
from services.local_engine.on_vllm.arguments import engine_arguments
from services.local_engine.on_vllm.chat_format import read_template
from services.local_engine.on_vllm.chat_tokenizer import ChatTokenizer
from services.local_engine.on_vllm.checks import check_options
from services.local_engine.on_vllm.core_watch import core_died
from services.local_engine.on_vllm.embedder import VllmEmbedder, embedder_for
from services.local_engine.on_vllm.form_guard import FormGuard
from services.local_engine.on_vllm.installed import installed
from services.local_engine.on_vllm.jobs import NewParams, VllmJobs
from services.local_engine.on_vllm.kv_events import BlockEvents, KvEventSocket
from services.local_engine.on_vllm.model_load import ModelLoad
from services.local_engine.on_vllm.options import VllmOptions
from services.local_engine.on_vllm.orphan_guard import OrphanGuard
from services.local_engine.on_vllm.outputs import Outputs, outputs_for
from services.local_engine.on_vllm.parser_names import ParserNames
from services.local_engine.on_vllm.parsers import check_names
from services.local_engine.on_vllm.pictures import PictureRenderer, renderer_of
from services.local_engine.on_vllm.sleep import VllmSleep
from services.local_engine.on_vllm.steps import StepRecorder
from services.local_engine.on_vllm.structured import serialised_tokenizer, structured_arguments
from services.local_engine.on_vllm.token_lengths import longest_token
from services.local_engine.prefix_events import PrefixNames

_log = logging.getLogger(__name__)

_LOST_POLL_S = 0.25
_CAPABILITIES = (
    pb.CAPABILITY_GENERATE,
    pb.CAPABILITY_RESUME_TOKENS,
    pb.CAPABILITY_RESUME_TEXT,
    pb.CAPABILITY_STRUCTURED_OUTPUT,
)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What exists once vLLM is up."""

    llm: Any
    facts: ModelFacts
    tokenizer: ChatTokenizer
    jobs: VllmJobs
    embedder: VllmEmbedder | None
    pictures: PictureRenderer | None
    kv_total_tokens: int
    prefill_budget: int
    prefixes: PrefixNames | None
    adapters: VllmAdapters | None
    sleep: VllmSleep
    answers: AnswerParsers
    forms: FormGuard | None


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
        self._state: _Loaded | None = None
        self._guard: OrphanGuard | None = None
        self._loading: ModelLoad[_Loaded] | None = None
        self._cores: list[int] = []

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
        _set_variables(vllm_options.process_variables(self._options))
        logging.getLogger("vllm").setLevel(max(_log.getEffectiveLevel(), logging.WARNING))
        started = self._clock()
        self._guard = OrphanGuard()
        tells = self._options.prefix_events and self._options.tuning.tells_cache
        tells = tells and not self._options.embeds
        self._events = _event_socket() if tells else None
        self._loading = loading = ModelLoad(self._load)
        try:
            self._state = await loading.result()
        except Exception as error:
            cause = loading.cause or str(error)
            raise EngineStartError(f"vLLM cannot serve {self._options.model}: {cause}") from error
        self._loading = None
        self._cores = loading.children()
        self._guard.watch(self._cores)
        self._run(self._state.jobs.run(), "vllm-jobs")
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
            state.jobs.abort_all()
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
            await asyncio.to_thread(state.llm.shutdown)
        if guard is not None:
            await asyncio.to_thread(guard.close)
        if events is not None:
            events.close()

    async def lost(self) -> str:
        """Waits until vLLM's engine core is dead."""
        llm = self._loaded.llm
        await core_died(self._cores, lambda: llm.errored, _LOST_POLL_S)
        return "vLLM's engine core has died"

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
    def _loaded(self) -> _Loaded:
        if self._state is None:
            raise Fault(
                errors_pb2.ERROR_REASON_MODEL_LOADING, "the model is not loaded", retry_after=2.0
            )
        return self._state

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    def _load(self) -> _Loaded:
        import vllm
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.executor.uniproc_executor import UniProcExecutor
        from vllm.v1.metrics.stats import SchedulerStats

        from services.local_engine.on_vllm.in_core import memory_guard

        options = self._options
        here = installed()
        check_options(options, here)
        is_cpu = here.is_cpu
        names = ParserNames(options.tool_parser, options.reasoning_parser)
        check_names(names)
        template = read_template(options.chat_template) if options.chat_template else ""
        arguments = engine_arguments(options, is_cpu=is_cpu)
        if options.sleep_mode and _can_sleep(current_platform):
            arguments["enable_sleep_mode"] = True
        if is_cpu:
            _set_variables(vllm_options.cpu_variables(options))
            if options.devices == 1:
                # Without a third process, which would import everything once more: 10 s less.
                arguments.setdefault("distributed_executor_backend", UniProcExecutor)
        if "iteration_details" in _field_names(SchedulerStats):
            # What each step computed comes with its statistics; older ones only log it.
            arguments["enable_logging_iteration_details"] = True
        if self._events is not None:
            arguments |= _event_arguments(self._events.endpoint, _field_names(AsyncEngineArgs))
        arguments |= structured_arguments(compact=options.forms.compact)
        config = AsyncEngineArgs(**arguments).create_engine_config()
        draws = seeding.choose(config)
        unguarded = memory_guard.install(config, vllm.__version__)
        if unguarded:
            _log.warning(
                "a step that runs out of memory ends the engine", extra={"cause": unguarded}
            )
        if is_cpu:
            _size_cpu_cache(config.cache_config, options.kv_cache_gib)
        llm = AsyncLLM.from_vllm_config(config, stat_loggers=[self._new_recorder])
        model, cache = config.model_config, config.cache_config
        prefixes = None
        if "kv_events_config" in arguments and cache.enable_prefix_caching:
            prefixes = PrefixNames(PrefixLog(), int(cache.block_size))
        elif self._events is not None:
            _log.info("this vLLM does not tell what its prefix cache holds: routers assume it")
        adapters = VllmAdapters(llm, options) if options.max_adapters else None
        new_params, refusals = _requests(dict(model.get_diff_sampling_param()), draws)
        raw = llm.get_tokenizer()
        chat = chat_format(names, raw, template)
        pictures = renderer_of(llm, model, raw, refusals, chat)
        if pictures is not None:
            # vLLM renders with its own in other threads, which a tokenizer does not survive.
            raw = copy.deepcopy(raw)
        tokenizer = ChatTokenizer(raw, int(model.get_vocab_size()), chat)
        answers = answer_parsers(names, tokenizer, raw, model)
        embedder = None
        if options.embeds:
            embedder = embedder_for(llm, model, tokenizer, self._meter, refusals, self._begun)
        grammars = serialised_tokenizer(raw, tokenizer.vocabulary)
        return _Loaded(
            llm=llm,
            facts=ModelFacts(
                name=options.name,
                source=os.path.basename(options.model.rstrip("/")),
                context_length=int(model.max_model_len),
                max_running=options.max_num_seqs * options.tuning.data_parallel_size,
                capabilities=_capabilities(options, pictures, answers),
                vector_size=int(model.embedding_size) if options.embeds else 0,
                most_images=0 if pictures is None else pictures.most_images,
                token_bytes=longest_token(raw),
            ),
            tokenizer=tokenizer,
            jobs=VllmJobs(
                llm,
                tokenizer,
                self._meter,
                new_params,
                refusals,
                self._outputs(llm, vllm.__version__),
                self._begun,
                prefixes,
                None if adapters is None else adapters.request_of,
            ),
            embedder=embedder,
            pictures=pictures,
            kv_total_tokens=int((cache.num_gpu_blocks or 0) * cache.block_size)
            * options.tuning.data_parallel_size,
            prefill_budget=int(config.scheduler_config.max_num_batched_tokens),
            prefixes=prefixes,
            adapters=adapters,
            sleep=VllmSleep(
                llm,
                enabled=bool(getattr(model, "enable_sleep_mode", False)),
                available=_can_sleep(current_platform),
                adapters=adapters,
            ),
            answers=answers,
            forms=FormGuard(grammars, options.forms) if grammars else None,
        )

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


def _capabilities(
    options: VllmOptions, pictures: PictureRenderer | None, answers: AnswerParsers
) -> tuple[pb.Capability, ...]:
    if options.embeds:
        return (pb.CAPABILITY_EMBED,)
    images = () if pictures is None else (pb.CAPABILITY_IMAGES,)
    return (*_CAPABILITIES, *answers.capabilities, *images)


_ours: set[str] = set()
"""Variables that hold what an engine here wanted: a later one may want another value of them."""


def _set_variables(variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        if os.environ.setdefault(name, value) == value:
            _ours.add(name)


def _size_cpu_cache(cache: Any, gib: int) -> None:
    """As wanted, whatever the environment says of an earlier engine; an operator's word stays."""
    if "VLLM_CPU_KVCACHE_SPACE" in _ours:
        for name in ("kv_cache_memory_bytes", "cpu_kvcache_space_bytes"):
            if getattr(cache, name, None):
                setattr(cache, name, gib << 30)


def _can_sleep(platform: Any) -> bool:
    """Newer ones are asked; of older ones those with CUDA's memory pools can."""
    ask = getattr(platform, "is_sleep_mode_available", None)
    return bool(ask() if ask is not None else platform.is_cuda())


def _event_socket() -> KvEventSocket | None:
    try:
        return KvEventSocket()
    except OSError as error:
        _log.warning(
            "no socket for events of the KV cache: routers assume what it holds",
            extra={"cause": str(error)},
        )
        return None


def _event_arguments(endpoint: str, known: frozenset[str]) -> dict[str, Any]:
    """What has vLLM publish its cache's events; nothing from one that cannot."""
    if "kv_events_config" not in known:
        return {}
    try:
        from vllm.config import KVEventsConfig

        config = KVEventsConfig(enable_kv_cache_events=True, publisher="zmq", endpoint=endpoint)
    except (ImportError, TypeError, ValueError):
        return {}
    return {"kv_events_config": config}


def _field_names(kind: Any) -> frozenset[str]:
    return frozenset(field.name for field in fields(kind))


def _requests(
    defaults: dict[str, Any], draws: seeding.Seeding
) -> tuple[NewParams, tuple[type[Exception], ...]]:
    """How to make vLLM's sampling parameters, and what it raises for a bad request."""
    import vllm.exceptions
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    # Made anew for each job, they need not be copied deeply: that is half of what a request costs.
    ours = {"skip_clone": True} if hasattr(SamplingParams, "skip_clone") else {}

    def new_params(job: Job, detokenize: bool) -> Any:
        arguments = sampling.sampling_arguments(job, defaults, detokenize=detokenize, seeding=draws)
        constraint = job.sampling.constraint
        if constraint is not None:
            form = sampling.constraint_arguments(constraint)
            arguments["structured_outputs"] = StructuredOutputsParams(**form)
        return SamplingParams(output_kind=RequestOutputKind.DELTA, **ours, **arguments)

    # VLLMClientError exists since vLLM 0.30; before it, refusals were plain ValueErrors.
    client_error = getattr(vllm.exceptions, "VLLMClientError", ValueError)
    return new_params, (ValueError, TypeError, NotImplementedError, client_error)
