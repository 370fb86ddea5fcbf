"""An `Engine` without a model, for tests, benchmarks and the routing lab; never for answers.

Runs `SimModel` against the clock: each step's tokens leave after the step's modelled time.
Every answer begins with the label "[sim]".
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Violation, invalid
from services.chassis.prefix_log import PrefixLog
from services.local_engine import wire
from services.local_engine.abilities import sleep_is_off
from services.local_engine.chat_turns import chat_turns, refuse_tools, unsupported
from services.local_engine.engine import (
    AnswerParser,
    Candidate,
    Constraint,
    Embeddings,
    EmbedJob,
    EngineLoad,
    Finish,
    Job,
    Media,
    ModelFacts,
    OnDelta,
    OnFail,
    OnPlain,
    Picture,
)
from services.local_engine.heartbeat import Heartbeat
from services.local_engine.job_output import JobOutput
from services.local_engine.load_meter import JobLoad, LoadMeter, StepSize
from services.local_engine.prefix_events import PrefixNames
from services.local_engine.simulation import tokenizer as sim_tokenizer
from services.local_engine.simulation.adapters import SimAdapters, adapter_seed
from services.local_engine.simulation.model import (
    SimLimits,
    SimModel,
    Stream,
    answer_seed,
    natural_length,
)
from services.local_engine.slow_spells import SlowSpell, factor_at
from services.local_engine.step_model import StepModel
from services.local_engine.text_stream import AnswerText

H100_LLAMA_8B = StepModel(5753e-6, 17.25e-6, 6.0e-6, 0.052e-6)
"""Published for Llama-3.1-8B on one H100."""
_MOST_LATE_S = 0.25


@dataclass(frozen=True, slots=True)
class SimOptions:
    """The simulated server. `speed` 2 halves every step, 0 makes them take no time."""

    name: str = "sim"
    context_length: int = 32_768
    limits: SimLimits = field(default_factory=SimLimits)
    pace: StepModel = H100_LLAMA_8B
    speed: float = 1.0
    mean_output_tokens: int = 128
    load_seconds: float = 0.0
    slow_spells: tuple[SlowSpell, ...] = ()
    prefix_events: bool = True
    max_adapters: int = 0
    max_adapter_rank: int = 16
    sleep_mode: bool = False


class _Running:
    """One job in the simulation."""

    __slots__ = ("load", "output", "streams", "texts")

    def __init__(self, output: JobOutput, load: JobLoad) -> None:
        self.output = output
        self.load = load
        self.streams: list[Stream] = []
        self.texts: dict[int, AnswerText] = {}


class SimEngine:
    """Simulated continuous batching in real time.

    `slowdown` may be set while it runs: 3 makes each step take three times as long, which the
    reported step time ratio then shows; slow spells do so by a schedule. `stalled` makes it hang
    as a stuck device would.
    """

    def __init__(
        self,
        options: SimOptions | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._options = options or SimOptions()
        self._clock = clock
        self._sleep = sleep
        limits, pace, speed = self._options.limits, self._options.pace, self._options.speed
        self._prefixes = PrefixNames(PrefixLog(), limits.block)
        self._model = SimModel(limits, pace, self._prefixes)
        self._meter = LoadMeter(clock, pace.faster(speed) if speed else None)
        self._started = clock()
        self._jobs: dict[str, _Running] = {}
        self._work = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._given_up = ""
        self.adapters = SimAdapters(self._options) if self._options.max_adapters else None
        self.asleep = 0
        self.slowdown = 1.0
        self.stalled = False

    @property
    def facts(self) -> ModelFacts:
        """The simulated model."""
        if self._loop_task is None:
            raise Fault(
                errors_pb2.ERROR_REASON_MODEL_LOADING, "the model is being loaded", retry_after=1.0
            )
        return ModelFacts(
            name=self._options.name,
            source="simulation",
            context_length=self._options.context_length,
            max_running=self._options.limits.max_running,
            capabilities=(
                pb.CAPABILITY_GENERATE,
                pb.CAPABILITY_RESUME_TOKENS,
                pb.CAPABILITY_RESUME_TEXT,
            ),
            token_bytes=sim_tokenizer.LONGEST,
        )

    @property
    def prefixes(self) -> PrefixLog | None:
        """What the simulated prefix cache holds."""
        return self._prefixes.log if self._options.prefix_events else None

    @property
    def heartbeat(self) -> Heartbeat:
        """When a simulated step last ended."""
        return self._meter.heartbeat

    async def start(self) -> None:
        """Pretends to load."""
        if self._options.load_seconds:
            await self._sleep(self._options.load_seconds)
        self._started = self._clock()
        self._loop_task = asyncio.create_task(self._run(), name="sim-engine")

    async def close(self) -> None:
        """Ends the loop; running jobs end as cancelled."""
        for job_id in tuple(self._jobs):
            self.abort(job_id)
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.wait({self._loop_task})

    async def lost(self) -> str:
        """Waits for the loop to end, which only a bug brings about."""
        assert self._loop_task is not None
        await asyncio.wait({self._loop_task})
        return "the simulation's loop has ended"

    async def encode(self, request: pb.GenerateRequest) -> list[int]:
        """The prompt's tokens; a conversation is one "role: text" line a turn."""
        if request.messages:
            turns = chat_turns(request.messages)
            lines = [f"{turn['role']}: {turn['content']}\n" for turn in turns]
            return sim_tokenizer.encode("".join(lines) + "assistant:")
        if request.prompt:
            return sim_tokenizer.encode(request.prompt)
        token_ids = list(request.prompt_token_ids)
        wire.check_vocabulary(token_ids, sim_tokenizer.VOCABULARY, "prompt_token_ids")
        return token_ids

    async def encode_with_images(
        self, request: pb.GenerateRequest, pictures: Sequence[Picture]
    ) -> tuple[list[int], Media]:
        """Refuses: a simulation sees nothing."""
        raise unsupported("images", "this model does not read images")

    async def encode_text(self, text: str) -> list[int]:
        """The tokens of plain text."""
        return sim_tokenizer.encode(text)

    def parser_for(self, request: pb.GenerateRequest) -> AnswerParser | None:
        """Refuses tools; nothing here reasons."""
        refuse_tools(request)
        return None

    async def embed(self, job: EmbedJob) -> Embeddings:
        """Refuses: a simulation has no vectors."""
        raise unsupported("embed", "this model does not embed")

    async def check_form(self, constraint: Constraint, tenant: str) -> None:
        """Refuses: a simulation has no grammar."""
        raise unsupported("response_format", "a simulation has no grammar")

    def submit(
        self, job: Job, on_delta: OnDelta, on_fail: OnFail, on_plain: OnPlain | None = None
    ) -> None:
        """Queues the job's choices."""
        output = JobOutput(job, on_delta, on_fail)
        if self._given_up:
            output.fail(output.lost(self._given_up))
            return
        if job.sampling.constraint is not None:
            output.fail(unsupported("response_format", "a simulation has no grammar"))
            return
        try:
            existing = job.continuation.token_ids
            wire.check_vocabulary(existing, sim_tokenizer.VOCABULARY, "continuation.token_ids")
        except Fault as refused:
            output.fail(refused)
            return
        prompt = job.prompt_token_ids
        held = self._prefixes.admit(job.block_names, job.text_bytes, prompt)
        tokens = len(prompt) + len(existing)
        running = _Running(output, self._meter.admit(tokens, job.sampling.n, held))
        try:
            self._add_streams(running)
        except ValueError as mismatch:
            running.load.end()
            output.fail(invalid([Violation("continuation.text", str(mismatch))]))
            return
        self._jobs[job.id] = running
        self._work.set()

    def abort(self, job_id: str) -> None:
        """Ends a job now."""
        running = self._jobs.pop(job_id, None)
        if running is not None:
            self._forget(running)
            running.output.cancel()

    def give_up(self, why: str) -> None:
        """Fails every job."""
        self._given_up = why
        jobs, self._jobs = self._jobs, {}
        for running in jobs.values():
            self._forget(running)
            running.output.fail(running.output.lost(why))

    def load(self) -> EngineLoad:
        """The load now."""
        limits = self._options.limits
        return self._meter.report(
            running=self._model.running,
            kv_used_tokens=self._model.kv_used,
            kv_total_tokens=limits.kv_tokens,
            max_running=limits.max_running,
            prefill_budget=limits.prefill_budget,
        )

    def check_sleep(self) -> None:
        """Raises Fault NOT_ENABLED."""
        if not self._options.sleep_mode:
            raise sleep_is_off()

    async def sleep(self, level: int) -> None:
        """Pretends to sleep: what it is given waits."""
        self.asleep = level

    async def wake(self) -> None:
        """Pretends to wake."""
        self.asleep = 0

    def _forget(self, running: _Running) -> None:
        for stream in running.streams:
            self._model.remove(stream)
        running.load.end()

    def _add_streams(self, running: _Running) -> None:
        job = running.output.job
        spec = job.sampling
        existing = job.continuation.token_ids
        for index in range(spec.n):
            seed = answer_seed(job.prompt_token_ids, index, spec.seed or 0)
            seed += adapter_seed(job.adapter)
            eos_at = max(natural_length(seed, self._options.mean_output_tokens), spec.min_tokens)
            if spec.stop or job.continuation:
                running.texts[index] = AnswerText(
                    sim_tokenizer.decode,
                    job.prompt_token_ids,
                    stops=spec.stop,
                    min_tokens=spec.min_tokens,
                    continued=existing,
                    continued_text=job.continuation.text,
                )
            running.streams.append(
                Stream(
                    key=(job.id, index),
                    prompt=job.prompt_token_ids,
                    seed=seed,
                    produced=len(existing),
                    length_limit=len(existing) + job.max_tokens,
                    eos_at=None if spec.ignore_eos else eos_at,
                )
            )
        for stream in running.streams:
            self._model.add(stream)

    async def _run(self) -> None:
        due = self._clock()
        while True:
            stalled = self.stalled or self.asleep
            if not self._model.busy or stalled:
                self._work.clear()
                if stalled:
                    await self._sleep(0.01)
                else:
                    await self._work.wait()
                due = self._clock()
                continue
            started = self._clock()
            step = self._model.step()
            seconds = self._seconds(step.seconds, started)
            # Steps follow each other on a grid, so that late wake-ups of a busy machine do not
            # add up: what one costs, the next ones make good, and only a long stall is lost.
            due += seconds
            lost = max(0.0, started - _MOST_LATE_S - due)
            due += lost
            await self._sleep(max(0.0, due - started))
            self._deliver(step.tokens)
            took = seconds + lost if seconds else self._clock() - started
            size = StepSize(step.prefill_tokens, step.decodes, step.context_tokens)
            self._meter.step(took, size)

    def _seconds(self, modelled: float, now: float) -> float:
        speed = self._options.speed
        if not speed:
            return 0.0
        slow = self.slowdown * factor_at(self._options.slow_spells, now - self._started)
        return modelled * slow / speed

    def _deliver(self, tokens: Sequence[tuple[Stream, int]]) -> None:
        for stream, token in tokens:
            job_id, index = stream.key
            running = self._jobs.get(job_id)
            if running is not None:
                self._deliver_token(running, index, stream, token)

    def _deliver_token(self, running: _Running, index: int, stream: Stream, token: int) -> None:
        output = running.output
        running.load.prefilled(stream.cached)
        running.load.produced(1)
        output.found_cached(stream.cached)
        finish = None
        if token == sim_tokenizer.EOS:
            finish = Finish.STOP
        elif stream.produced >= stream.length_limit:
            finish = Finish.LENGTH
        text, matched = sim_tokenizer.word(token), ""
        answer = running.texts.get(index)
        if answer is not None:
            text, matched, _ = answer.push((token,), last=finish is not None)
            if matched:
                finish = Finish.STOP
                self._model.remove(stream)
        if finish is not None:
            running.load.choice_ended()
        wanted = output.job.sampling.logprobs
        logprobs = () if wanted is None else (_candidates(token, wanted),)
        output.emit(index, (token,), text, logprobs=logprobs, finish=finish, matched_stop=matched)
        if output.ended:
            running.load.end()
            self._jobs.pop(output.job.id, None)


def _candidates(token: int, alternatives: int) -> list[Candidate]:
    """Made-up probabilities: half for the token, half of the rest for each neighbour in turn."""
    ids = [token] + [
        sim_tokenizer.FIRST_WORD + (token + step) % sim_tokenizer.WORDS
        for step in range(1, alternatives + 1)
    ]
    return [
        Candidate(token_id, sim_tokenizer.word(token_id), -math.log(2) * place)
        for place, token_id in enumerate(ids, 1)
    ]
