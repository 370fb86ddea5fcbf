"""Judges the form that an answer must have before vLLM gets the request. Does not import vLLM.

A form is compiled under a limit in processes apart, see form_compiler; here forms queue for them,
tenants by turns, and verdicts are remembered. vLLM compiles again what passes, in a thread of its
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
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from os import killpg
from pathlib import Path
from signal import SIGKILL
from typing import Generic, TypeVar

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault, Violation, invalid
from services.local_engine.chat_turns import unsupported
from services.local_engine.engine import Constraint, ConstraintKind
from services.local_engine.forms import FormLimits, field_of
from services.local_engine.on_vllm.sampling import choice_grammar
from services.local_engine.on_vllm.schema_keywords import unenforced

_log = logging.getLogger(__name__)
T = TypeVar("T")

_PROGRAM = Path(__file__).with_name("form_compiler.py")
_MOST_WAITING = 1024
_MOST_WAITING_OF_ONE = 256
_MOST_VERDICTS = 4096
_SLOW_KEPT_S = 60.0
"""A form that took too long may have met a busy machine: it may be tried again some time."""
_RESTART_S = 1.0
_LONGEST_WAIT_S = 60.0


class FairQueue(Generic[T]):
    """First come, first served within a key, and the keys by turns; bounded in all and each."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most, self._most_of_one = most, most_of_one
        self._keys: OrderedDict[str, deque[T]] = OrderedDict()
        self._held = 0

    def __len__(self) -> int:
        return self._held

    def put(self, key: str, item: T) -> bool:
        """Whether there was room for it."""
        if self._held >= self._most or len(self._keys.get(key, ())) >= self._most_of_one:
            return False
        self._keys.setdefault(key, deque()).append(item)
        self._held += 1
        return True

    def next(self) -> T | None:
        """The next item of the key whose turn it is."""
        if not self._keys:
            return None
        key, items = self._keys.popitem(last=False)
        self._held -= 1
        item = items.popleft()
        if items:
            self._keys[key] = items
        return item


@dataclass(slots=True)
class _Case:
    """A form that is being judged, for everybody who asks meanwhile."""

    name: bytes
    line: bytes
    verdict: asyncio.Future[str]
    number: int = 0


@dataclass(frozen=True, slots=True)
class _Verdict:
    refused: str
    until: float = field(default=float("inf"))


class FormGuard:
    """The guard of one engine. `run` must be running; `tokenizer` is xgrammar's serialisation.

    Used on one event loop, which it never blocks.
    """

    def __init__(
        self,
        tokenizer: str,
        limits: FormLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._told = json.dumps(
            {
                "tokenizer": tokenizer,
                "processes": limits.processes,
                "memory": limits.memory,
                "compact": limits.compact,
            }
        ).encode()
        self._verdicts: OrderedDict[bytes, _Verdict] = OrderedDict()
        self._queue: FairQueue[_Case] = FairQueue(_MOST_WAITING, _MOST_WAITING_OF_ONE)
        self._open: dict[bytes, _Case] = {}
        self._judged: dict[int, _Case] = {}
        self._numbers = 0
        self._process: Process | None = None
        self.ready = asyncio.Event()
        self.compiled = 0

    async def check(self, constraint: Constraint, tenant: str, at: str = "") -> None:
        """Returns when the form may go to vLLM.

        Raises Fault INVALID_REQUEST naming the field (`at`, or that of response_format) and the
        cause, OVERLOADED while too many forms wait to be judged, UNSUPPORTED for a kind of form
        that this engine does not offer.
        """
        asked = constraint.origin == "response_format"
        if asked and constraint.kind.value not in self._limits.kinds:
            raise unsupported(
                f"response_format.{constraint.kind.value}", "this engine does not offer this form"
            )
        at = at or field_of(constraint)
        kind, text = constraint.kind.value, constraint.text
        if constraint.kind is ConstraintKind.CHOICE:
            kind, text = "grammar", choice_grammar(constraint.options)
        name = hashlib.blake2b(f"{kind}\0{text}".encode(), digest_size=16).digest()
        refused = self._remembered(name)
        if refused is None and constraint.kind is ConstraintKind.JSON_SCHEMA:
            keyword = unenforced(text)
            if keyword:
                refused = f"{keyword} cannot be enforced while the answer is generated"
                self._remember(name, _Verdict(refused))
        if refused is None:
            case = self._open.get(name) or self._take(name, kind, text, tenant)
            refused = await self._settled(case)
        if refused:
            raise invalid([Violation(at, f"cannot be used: {refused}")])

    async def run(self) -> None:
        """Keeps the processes that judge, until cancelled; they end before this returns."""
        while True:
            started = self._clock()
            process = await asyncio.create_subprocess_exec(
                # Not its directory but what this process imports from: xgrammar is there.
                *(sys.executable, "-P", str(_PROGRAM)),
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,  # some of what it says there quotes what callers sent
                start_new_session=True,
            )
            try:
                await self._serve(process)
            finally:
                self.ready.clear()
                self._process = None
                # Those that it has begun are in its process group.
                with contextlib.suppress(ProcessLookupError):
                    killpg(process.pid, SIGKILL)
                await process.wait()
                self._lose()
            _log.warning("the process that judges forms of answers has ended: another is started")
            await asyncio.sleep(max(0.0, started + _RESTART_S - self._clock()))

    async def _serve(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(self._told + b"\n")
        async for line in process.stdout:
            told = json.loads(line)
            if "ready" in told:
                self._process = process
                self.ready.set()
            else:
                self._settle(self._judged.pop(told["id"]), told["refused"], told["slow"])
            self._pump()

    def _take(self, name: bytes, kind: str, text: str, tenant: str) -> _Case:
        self._numbers += 1
        form = {
            "id": self._numbers,
            "kind": kind,
            "text": text,
            "seconds": self._limits.seconds,
        }
        verdict: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        case = _Case(name, json.dumps(form).encode() + b"\n", verdict, self._numbers)
        if not self._queue.put(tenant, case):
            raise _overloaded()
        self._open[name] = case
        self._pump()
        return case

    async def _settled(self, case: _Case) -> str:
        try:
            async with asyncio.timeout(_LONGEST_WAIT_S):
                # One that gives up must not end it for the others.
                return await asyncio.shield(case.verdict)
        except TimeoutError:
            raise _overloaded() from None

    def _pump(self) -> None:
        """Hands waiting forms on, as many as are judged at once."""
        while self._process is not None and len(self._judged) < self._limits.processes:
            case = self._queue.next()
            if case is None:
                return
            assert self._process.stdin is not None
            self._judged[case.number] = case
            self.compiled += 1
            self._process.stdin.write(case.line)

    def _settle(self, case: _Case, refused: str, slow: bool) -> None:
        self._open.pop(case.name, None)
        until = self._clock() + _SLOW_KEPT_S if slow else float("inf")
        self._remember(case.name, _Verdict(refused, until))
        if not case.verdict.done():
            case.verdict.set_result(refused)

    def _lose(self) -> None:
        """The process has gone, and with it what it was judging."""
        for case in self._judged.values():
            self._open.pop(case.name, None)
            if not case.verdict.done():
                case.verdict.set_exception(_overloaded())
                case.verdict.exception()  # seen, even where nobody waits any more
        self._judged.clear()

    def _remembered(self, name: bytes) -> str | None:
        found = self._verdicts.get(name)
        if found is None or found.until < self._clock():
            return None
        self._verdicts.move_to_end(name)
        return found.refused

    def _remember(self, name: bytes, verdict: _Verdict) -> None:
        self._verdicts[name] = verdict
        self._verdicts.move_to_end(name)
        while len(self._verdicts) > _MOST_VERDICTS:
            self._verdicts.popitem(last=False)


def _overloaded() -> Fault:
    return Fault(
        errors_pb2.ERROR_REASON_OVERLOADED,
        "too many response formats wait to be compiled",
        retry_after=1.0,
    )
