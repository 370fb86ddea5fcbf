"""Judges the form that an answer must have before vLLM gets the request. Does not import vLLM.

A form is compiled under a limit in processes apart, see form_compiler; here forms wait for them
in a form_queue, and verdicts are remembered. vLLM compiles again what passes, in a thread of its
engine core, and takes no longer for it than was taken here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from os import killpg
from pathlib import Path
from signal import SIGKILL
from typing import Any

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault, Violation, invalid
from services.local_engine.chat_turns import unsupported
from services.local_engine.engine import Constraint, ConstraintKind
from services.local_engine.forms import FormLimits, field_of
from services.local_engine.on_vllm.expressions import passed_over
from services.local_engine.on_vllm.form_queue import FairQueue, Verdicts
from services.local_engine.on_vllm.sampling import choice_grammar
from services.local_engine.on_vllm.schema_keywords import doubtful, unenforced

_log = logging.getLogger(__name__)

_PROGRAM = Path(__file__).with_name("form_compiler.py")
_MOST_WAITING = 1024
_MOST_WAITING_OF_ONE = 256
_MOST_VERDICTS = 4096
_RESTART_S = 1.0
_RESTART_MOST_S = 30.0
"""Each start in a row that fails is waited for twice as long as the one before, up to this."""
_LONGEST_WAIT_S = 60.0
_LONG_TEXT = 4096  # characters, a few milliseconds of looking through them
_NOBODY = ""
"""The tenant that the forms which the guard itself asks for are judged for."""


@dataclass(eq=False, slots=True)
class _Case:
    """A form that is being judged, for everybody who asks meanwhile: `waiting`, by tenant."""

    name: bytes
    number: int
    kind: str
    line: bytes
    verdict: asyncio.Future[str]
    doubt: str = ""
    """What is refused where xgrammar takes a schema's expressions just as they are."""
    begun: bool = False
    waiting: dict[str, int] = field(default_factory=dict)


class FormGuard:
    """The guard of one engine. `run` must be running; `tokenizer` is xgrammar's serialisation.

    Used on one event loop, which it never blocks. `program` is what judges.
    """

    def __init__(
        self,
        tokenizer: str,
        limits: FormLimits,
        clock: Callable[[], float] = time.monotonic,
        program: Path = _PROGRAM,
    ) -> None:
        self._limits = limits
        self._clock = clock
        # Not its directory but what this process imports from: xgrammar is there.
        self._command = (sys.executable, "-P", str(program))
        self._told = json.dumps(
            {
                "tokenizer": tokenizer,
                "processes": limits.processes,
                "memory": limits.memory,
                "compact": limits.compact,
            }
        ).encode()
        self._verdicts = Verdicts(_MOST_VERDICTS)
        self._queue: FairQueue[_Case] = FairQueue(_MOST_WAITING, _MOST_WAITING_OF_ONE)
        self._open: dict[bytes, _Case] = {}
        self._judged: dict[int, _Case] = {}
        self._numbers = 0
        self._process: Process | None = None
        self._raw_patterns = False
        self._down, self._down_s = "", _RESTART_S
        self._failures = 0
        self.ready = asyncio.Event()
        self.compiled = 0

    async def check(self, constraint: Constraint, tenant: str, at: str = "") -> None:
        """Returns when the form may go to vLLM.

        Raises Fault INVALID_REQUEST naming the field (`at`, or that of response_format) and the
        cause, OVERLOADED while too many forms wait to be judged or nothing can judge them,
        UNSUPPORTED for a kind of form that this engine does not offer.
        """
        asked = constraint.origin == "response_format"
        if asked and constraint.kind.value not in self._limits.kinds:
            raise unsupported(
                f"response_format.{constraint.kind.value}", "this engine does not offer this form"
            )
        kind, text = constraint.kind.value, constraint.text
        if constraint.kind is ConstraintKind.CHOICE:
            kind, text = "grammar", choice_grammar(constraint.options)
        # What a parser of tool calls has made a form of is for the parser to check once more.
        name = _name_of(f"{kind} {asked:d}", text)
        refused = self._verdicts.get(name, self._clock())
        if refused is None:
            refused, doubt = "", ""
            if asked:
                refused, doubt = await _objections(kind, text)
            if not refused:
                refused = await self._judge(name, kind, text, doubt, tenant)
        if refused:
            raise invalid([Violation(at or field_of(constraint), f"cannot be used: {refused}")])

    async def run(self) -> None:
        """Keeps the processes that judge, until cancelled; they end before this returns."""
        try:
            while True:
                why = await self._serve_once()
                wait = min(_RESTART_S * 2.0 ** min(self._failures, 8), _RESTART_MOST_S)
                if self._failures:
                    self._down, self._down_s = why, wait
                    self._lose(tuple(self._open.values()))
                _log.warning(
                    "the process that judges forms of answers has ended: another is started",
                    extra={"cause": why, "failed_starts": self._failures, "seconds": wait},
                )
                await asyncio.sleep(wait)
        finally:
            self._down = "the engine ends"
            self._lose(tuple(self._open.values()))

    async def _serve_once(self) -> str:
        """Why it has ended. Counts starts that have come to nothing."""
        self._failures += 1
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,  # some of what it says there quotes what callers sent
                start_new_session=True,
            )
        except OSError as error:
            return f"it cannot be started: {error.strerror or type(error).__name__}"
        try:
            why = await self._serve(process)
        finally:
            self.ready.clear()
            self._process = None
            # Those that it has begun are in its process group.
            with contextlib.suppress(ProcessLookupError):
                killpg(process.pid, SIGKILL)
            await process.wait()
            self._lose(tuple(self._judged.values()))
        return why or f"status {process.returncode}"

    async def _serve(self, process: Process) -> str:
        """What it said of its end, if anything."""
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(self._told + b"\n")
        try:
            async for line in process.stdout:
                told = json.loads(line)
                if "failed" in told:
                    return str(told["failed"])
                if "ready" in told:
                    self._begin(process, raw_patterns=bool(told["raw_patterns"]))
                else:
                    self._settle(self._judged.pop(told["id"]), told)
                self._pump()
        except (ValueError, KeyError, TypeError) as error:
            return f"it says what nobody understands: {type(error).__name__}"
        return ""

    def _begin(self, process: Process, *, raw_patterns: bool) -> None:
        self._process, self._raw_patterns = process, raw_patterns
        self._failures, self._down = 0, ""
        # Any object is the form that most ask for: the first of them need not wait for it.
        kind = ConstraintKind.JSON_OBJECT.value
        name = _name_of(f"{kind} 1", "")
        if self._verdicts.get(name, self._clock()) is None and name not in self._open:
            case = self._new(name, kind, "", "")
            if self._queue.put(_NOBODY, case):
                self._open[name], case.waiting = case, {_NOBODY: 1}
        self.ready.set()

    async def _judge(self, name: bytes, kind: str, text: str, doubt: str, tenant: str) -> str:
        """The verdict, once it is there."""
        if self._down:
            raise _unjudged(self._down, self._down_s)
        case = self._open.get(name) or self._new(name, kind, text, doubt)
        # Another tenant's place in the queue is no reason to wait longer than in one's own.
        placed = tenant in case.waiting or case.begun or self._queue.put(tenant, case)
        if not placed:
            raise _overloaded()
        self._open[name] = case
        case.waiting[tenant] = case.waiting.get(tenant, 0) + 1
        self._pump()
        try:
            async with asyncio.timeout(_LONGEST_WAIT_S):
                # One that gives up must not end it for the others.
                return await asyncio.shield(case.verdict)
        except TimeoutError:
            raise (_overloaded() if self.ready.is_set() else _unjudged("not ready yet")) from None
        finally:
            self._gives_up(case, tenant)

    def _new(self, name: bytes, kind: str, text: str, doubt: str) -> _Case:
        self._numbers += 1
        form = {
            "id": self._numbers,
            "kind": kind,
            "text": text,
            "seconds": self._limits.seconds,
        }
        verdict: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        line = json.dumps(form).encode() + b"\n"
        return _Case(name, self._numbers, kind, line, verdict, doubt)

    def _gives_up(self, case: _Case, tenant: str) -> None:
        """One waits no more; what nobody waits for any more is not judged."""
        case.waiting[tenant] -= 1
        if case.waiting[tenant]:
            return
        del case.waiting[tenant]
        if case.begun or case.verdict.done():
            return
        self._queue.discard(tenant, case)
        if not case.waiting:
            self._open.pop(case.name, None)
            case.verdict.cancel()

    def _pump(self) -> None:
        """Hands waiting forms on, as many as are judged at once."""
        while self._process is not None and len(self._judged) < self._limits.processes:
            case = self._queue.next()
            if case is None:
                return
            assert self._process.stdin is not None
            case.begun = True
            for tenant in case.waiting:
                self._queue.discard(tenant, case)
            self._judged[case.number] = case
            self.compiled += 1
            self._process.stdin.write(case.line)

    def _settle(self, case: _Case, told: dict[str, Any]) -> None:
        if told["lost"]:
            self._lose([case], str(told["lost"]))
            return
        self._open.pop(case.name, None)
        refused, passing = str(told["refused"]), bool(told["passing"])
        if case.doubt and not refused and self._raw_patterns:
            refused = f"{case.doubt} cannot be enforced by the installed version of xgrammar"
        if passing:
            # A time, memory, or a crash: nothing of what was asked is quoted.
            _log.info("a form could not be judged", extra={"kind": case.kind, "cause": refused})
        self._verdicts.add(case.name, refused, self._clock(), passing=passing)
        if not case.verdict.done():
            case.verdict.set_result(refused)

    def _lose(self, cases: Iterable[_Case], why: str = "") -> None:
        """Nobody judges these any more."""
        for case in cases:
            self._open.pop(case.name, None)
            self._judged.pop(case.number, None)
            for tenant in case.waiting:
                self._queue.discard(tenant, case)
            if not case.verdict.done():
                case.verdict.set_exception(_unjudged(why or self._down or "it was interrupted"))
                case.verdict.exception()  # seen, even where nobody waits any more


async def _objections(kind: str, text: str) -> tuple[str, str]:
    """Why a caller's form is refused unseen, or ""; and why it is by some versions of xgrammar."""
    if len(text) > _LONG_TEXT and kind in ("json_schema", "regex"):
        return await asyncio.to_thread(_objections_now, kind, text)
    return _objections_now(kind, text)


def _objections_now(kind: str, text: str) -> tuple[str, str]:
    doubt = ""
    if kind == "json_schema":
        refused, doubt = unenforced(text), doubtful(text)
    elif kind == "regex":
        refused = passed_over(text)
    else:
        return "", ""
    return (f"{refused} cannot be enforced while the answer is generated" if refused else ""), doubt


def _name_of(kind: str, text: str) -> bytes:
    return hashlib.blake2b(f"{kind}\0{text}".encode(), digest_size=16).digest()


def _overloaded() -> Fault:
    return Fault(
        errors_pb2.ERROR_REASON_OVERLOADED,
        "too many response formats wait to be compiled",
        retry_after=1.0,
    )


def _unjudged(why: str, seconds: float = 1.0) -> Fault:
    return Fault(
        errors_pb2.ERROR_REASON_OVERLOADED,
        f"response formats cannot be compiled at present: {why}",
        retry_after=seconds,
    )
