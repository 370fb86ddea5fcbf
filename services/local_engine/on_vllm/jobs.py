"""Jobs into vLLM's AsyncLLM, and its outputs back to them. Does not import vLLM.

How outputs come is outputs.py's.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections.abc import Callable
from typing import Any

from services.chassis.errors import Fault, Violation, fault_of, invalid
from services.local_engine.engine import Finish, Job, OnDelta, OnFail, OnPlain
from services.local_engine.forms import field_of
from services.local_engine.job_output import JobOutput
from services.local_engine.load_meter import JobLoad, LoadMeter
from services.local_engine.on_vllm import sampling as vllm_sampling
from services.local_engine.on_vllm.chat_tokenizer import ChatTokenizer
from services.local_engine.on_vllm.core_failures import core_failure
from services.local_engine.on_vllm.outputs import Outputs, Plain
from services.local_engine.on_vllm.pictures import prompt_with
from services.local_engine.on_vllm.plain_output import PlainOutput, TokenChunks
from services.local_engine.on_vllm.token_bytes import ByteText
from services.local_engine.prefix_events import PrefixNames
from services.local_engine.text_stream import AnswerText, ends_inside_character

_log = logging.getLogger(__name__)

NewParams = Callable[[Job, bool], Any]
"""Makes vLLM's SamplingParams for a job; the flag says whether vLLM makes its text."""

_DIED = "the engine has died"

_IN_A_ROW = 8
"""Jobs that are passed on before others get a turn: vLLM takes some 0.2 ms for each, and a burst
of them is not to hold up the first tokens of those that are there already."""


class _Running:
    """One job inside vLLM. `texts`, one a choice, is set for jobs whose text vLLM does not make.

    `cut`: a stop string was found here, so vLLM goes on with a choice that has ended.
    """

    __slots__ = ("cut", "load", "on_plain", "output", "texts")

    def __init__(self, output: JobOutput, load: JobLoad, on_plain: OnPlain | None) -> None:
        self.output = output
        self.load = load
        self.on_plain = on_plain
        self.texts: list[AnswerText] | list[ByteText] = []
        self.cut = False


class VllmJobs:
    """The jobs that run on one AsyncLLM. `refusals` are what it raises for a bad request.

    `on_begin` is called when vLLM gets a job after it had none; `prefixes` learns of each job.
    `adapter_of` makes vLLM's LoRARequest of an adapter's key; KeyError for one that is not loaded.
    """

    def __init__(
        self,
        llm: Any,
        tokenizer: ChatTokenizer,
        meter: LoadMeter,
        new_params: NewParams,
        refusals: tuple[type[Exception], ...],
        outputs: Outputs,
        on_begin: Callable[[], None],
        prefixes: PrefixNames | None,
        adapter_of: Callable[[str], Any] | None = None,
    ) -> None:
        self._llm = llm
        self._adapter_of = adapter_of
        self._on_begin = on_begin
        self._prefixes = prefixes
        self._idle = True
        self._outputs = outputs
        self._tokenizer = tokenizer
        table = tokenizer.token_bytes
        self._chunks = None if table is None else TokenChunks(table)
        self._meter = meter
        self._new_params = new_params
        self._refusals = refusals
        self._given_up = ""
        self._jobs: dict[str, _Running] = {}
        # Jobs to add and ids to abort, in one order: an abort never overtakes its job.
        self._commands: asyncio.Queue[_Running | str] = asyncio.Queue()

    def submit(
        self, job: Job, on_delta: OnDelta, on_fail: OnFail, on_plain: OnPlain | None = None
    ) -> None:
        """Queues the job for vLLM."""
        output = JobOutput(job, on_delta, on_fail)
        if self._given_up or self._llm.errored:
            output.fail(output.lost(self._given_up or _DIED))
            return
        tokens = len(job.prompt_token_ids) + len(job.continuation.token_ids)
        held = 0
        if self._prefixes is not None and not job.adapter:
            told = job.prompt_token_ids
            if job.media is not None:
                told = told[: job.media.text_tokens]  # further ones are alike, their images not
            held = self._prefixes.admit(job.block_names, job.text_bytes, told)
        running = _Running(output, self._meter.admit(tokens, job.sampling.n, held), on_plain)
        self._idle = self._idle or not self._jobs
        self._jobs[job.id] = running
        self._commands.put_nowait(running)

    def abort(self, job_id: str) -> None:
        """Ends a job for its caller now; vLLM hears of it in order."""
        running = self._jobs.get(job_id)
        if running is not None:
            self._forget(running)
            self._commands.put_nowait(job_id)
            running.output.cancel()

    def abort_all(self) -> None:
        """Ends every job."""
        for job_id in tuple(self._jobs):
            self.abort(job_id)

    def give_up(self, why: str) -> None:
        """Fails every job, and each later one, without a word to vLLM."""
        self._given_up = why
        for running in tuple(self._jobs.values()):
            self._end(running, running.output.lost(why))

    async def run(self) -> None:
        """Passes jobs and aborts on to vLLM, in order, until cancelled."""
        async with self._outputs:
            for number in itertools.count(1):
                if number % _IN_A_ROW == 0:
                    await asyncio.sleep(0)
                command = await self._commands.get()
                if isinstance(command, str):
                    await self._abort(command)
                elif not command.output.ended:
                    await self._add(command)

    async def _abort(self, job_id: str) -> None:
        try:
            await self._llm.abort(job_id)
        except Exception as error:  # noqa: BLE001 - the edge: other jobs wait to be passed on
            _log.warning("vLLM did not take an abort", extra={"cause": type(error).__name__})
        self._outputs.forget(job_id)

    async def _add(self, running: _Running) -> None:
        job = running.output.job
        try:
            if self._needs_own_text(job):
                running.texts = [self._own_text(job) for _ in range(job.sampling.n)]
            elif (table := self._tokenizer.token_bytes) is not None and _is_bytes(job):
                running.texts = [ByteText(table) for _ in range(job.sampling.n)]
            params = self._new_params(job, not running.texts)
            tokens = [*job.prompt_token_ids, *job.continuation.token_ids]
            await self._outputs.begin(
                job.id,
                tokens if job.media is None else prompt_with(job.media, tokens),
                params,
                job.priority,
                functools.partial(self._receive, running),
                {
                    **vllm_sampling.reasoning_arguments(job.sampling),
                    **self._adapter(job),
                },
                self._plain(running),
            )
            if self._idle:
                self._idle = False
                self._on_begin()
        except Exception as error:  # noqa: BLE001 - the edge: vLLM's refusals end this job alone
            self._fail(running, error)

    def _adapter(self, job: Job) -> dict[str, Any]:
        if not job.adapter:
            return {}
        if self._adapter_of is None:
            raise KeyError(job.adapter)
        return {"lora_request": self._adapter_of(job.adapter)}

    def _plain(self, running: _Running) -> Plain | None:
        """Takes what comes between the job's first output and its last; None: as all else."""
        job, text = running.output.job, running.texts[0] if running.texts else None
        if job.sampling.n > 1 or not _is_ordinary(job) or isinstance(text, AnswerText):
            return None
        plain = PlainOutput(
            running.output,
            running.load,
            text,
            self._chunks,
            running.on_plain,
            functools.partial(self._broke, running),
        )
        return plain.take

    def _broke(self, running: _Running, error: Exception) -> None:
        """What came from vLLM could not be handed on: the job fails, and vLLM is to forget it.

        Nothing is the request's fault any more, whatever the error's kind.
        """
        self._commands.put_nowait(running.output.job.id)
        lost = self._llm.errored and not isinstance(error, Fault)
        self._end(running, running.output.lost(_DIED) if lost else fault_of(error))

    def _needs_own_text(self, job: Job) -> bool:
        """Whether vLLM's own text would be wrong.

        Its incremental detokenizer, primed with a prompt that ends inside a character, emits
        the whole prompt; and it knows nothing of what a continuation has sent already.
        """
        if job.continuation:
            return True
        table, prompt = self._tokenizer.token_bytes, job.prompt_token_ids
        if table is not None:
            return table.ends_inside_character(prompt)
        return ends_inside_character(self._tokenizer.decode, prompt)

    def _own_text(self, job: Job) -> AnswerText:
        self._tokenizer.check(job.continuation.token_ids, "continuation.token_ids")
        special = job.sampling.special_tokens
        try:
            return AnswerText(
                self._tokenizer.decode_all if special else self._tokenizer.decode,
                job.prompt_token_ids,
                stops=job.sampling.stop,
                min_tokens=job.sampling.min_tokens,
                continued=job.continuation.token_ids,
                continued_text=job.continuation.text,
            )
        except ValueError as mismatch:
            raise invalid([Violation("continuation.text", str(mismatch))]) from mismatch

    def _receive(self, running: _Running, output: Any) -> None:
        if isinstance(output, Exception):
            # After output, or as no refusal, it is the end of vLLM's output loop.
            refuses = self._outputs.refuses_late and not running.output.started
            if refuses and isinstance(output, self._refusals):
                self._fail(running, output)
            else:
                self._end(running, running.output.lost(_DIED))
            return
        if not running.output.ended:
            self._deliver_all(running, output)

    def _deliver_all(self, running: _Running, output: Any) -> None:
        try:
            cached = output.num_cached_tokens or 0
            running.output.found_cached(cached)
            if not running.output.started:
                _tell_waits(running.output, getattr(output, "metrics", None))
            running.load.prefilled(cached)
            for part in output.outputs:
                self._deliver(running, part)
        except Exception as error:  # noqa: BLE001 - the edge: this runs inside vLLM's output loop
            self._broke(running, error)
        if running.output.ended:
            if running.cut:
                self._commands.put_nowait(running.output.job.id)
            self._forget(running)

    def _deliver(self, running: _Running, part: Any) -> None:
        """Hands on what one choice has produced."""
        output = running.output
        failure = core_failure(part.finish_reason, part.stop_reason)
        if failure is not None:
            raise failure
        if not output.runs(part.index):
            return  # vLLM does not know yet, or the job's other choices go on
        token_ids, text = part.token_ids, part.text
        finish = vllm_sampling.finish_of(part.finish_reason)
        matched = part.stop_reason if isinstance(part.stop_reason, str) else ""
        if running.texts:
            # The token that vLLM stopped at, the end of the sequence, is no text.
            shown = token_ids[:-1] if finish is Finish.STOP else token_ids
            text, matched, counted = running.texts[part.index].push(shown, last=finish is not None)
            if matched:
                token_ids, finish = token_ids[:counted], Finish.STOP
                # Told to vLLM once no choice goes on: it can only be told of the whole job.
                running.cut = True
        if not token_ids and not text and finish is None:
            return
        running.load.produced(len(token_ids))
        if finish is not None:
            running.load.choice_ended()
        alternatives = output.job.sampling.logprobs
        output.emit(
            part.index,
            token_ids,
            text,
            logprobs=vllm_sampling.candidates_of(
                token_ids, part.logprobs, alternatives, self._token_text
            ),
            finish=finish,
            matched_stop=matched,
        )

    def _token_text(self, token_id: int) -> str:
        return self._tokenizer.decode((token_id,))

    def _fail(self, running: _Running, error: Exception) -> None:
        if isinstance(error, Fault):
            fault = error
        elif self._llm.errored:
            fault = running.output.lost(_DIED)
        elif isinstance(error, self._refusals):
            # The chassis has checked every scalar: what is left to refuse is mostly a grammar.
            constraint = running.output.job.sampling.constraint
            field = "sampling" if constraint is None else field_of(constraint)
            fault = invalid([Violation(field, f"the engine refuses it: {error}")])
        else:
            fault = fault_of(error)
        self._end(running, fault)

    def _end(self, running: _Running, fault: Fault) -> None:
        self._forget(running)
        running.output.fail(fault)

    def _forget(self, running: _Running) -> None:
        self._jobs.pop(running.output.job.id, None)
        running.load.end()


def _is_ordinary(job: Job) -> bool:
    """Whether nothing but text and tokens is wanted, and no text ends it."""
    return job.sampling.logprobs is None and not job.sampling.stop


def _is_bytes(job: Job) -> bool:
    """Whether a table of bytes has the job's text: special tokens have none in it."""
    return _is_ordinary(job) and not job.sampling.special_tokens


def _tell_waits(output: JobOutput, stats: Any) -> None:
    """What vLLM says of a request's way to its first token, in seconds of the engine core's clock;
    it says nothing where it keeps no statistics of its requests."""
    if stats is None or not stats.scheduled_ts or not stats.first_token_ts:
        return
    queued, prefill = stats.scheduled_ts - stats.queued_ts, stats.first_token_ts
    output.waited(max(0.0, queued), max(0.0, prefill - stats.scheduled_ts))
