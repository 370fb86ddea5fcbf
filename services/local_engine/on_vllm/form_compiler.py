"""The program that judges forms of answers: a process beside the service, forking one for each.

It compiles a form as vLLM's engine core would, and walks some answers of it, in a process that
is killed when that takes too long. Nothing it compiles is used: vLLM compiles again what passed.
Run by its path; it imports xgrammar and nothing of the service's. What it is told and tells is
in lines of JSON:

    in   {"tokenizer": …, "processes": 2, "memory": bytes, "compact": false}   once
         {"id": 1, "kind": "regex", "text": "…", "seconds": 0.5}               a form
    out  {"ready": true, "raw_patterns": false}                                once
         {"id": 1, "refused": "", "passing": false, "lost": ""}                a verdict
         {"failed": "…"}                                                       before it gives up

A verdict is `passing` when another time may bring another; `lost` says why there is none.
`raw_patterns` says that this xgrammar takes a schema's expressions just as they are.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import random
import resource
import selectors
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 4
"""A form has its seconds on the clock and on the processor both, so that a busy machine is not
held against it, but no more than so many times its seconds."""

CONVERSION_S = 0.05
"""vLLM converts each form once more on the service's event loop, where every stream waits."""

TOKEN_S = 0.02
"""Of processor time, for one token of a walk: the engine core spends it in the middle of a step,
where everybody waits."""

_WALKED_TOKENS = 384
_WALK_SHARE = 0.4
_TICKS = os.sysconf("SC_CLK_TCK")
_COMPILED = b"c"
_MOST_VERDICT = 4096  # bytes, so that it fits into a pipe
_NICE = 5
_NO_MEMORY = "compiling it takes more memory than there is for it"

THREADS = 8
"""That compile one form."""

_STACK = 8 << 20
"""Of one thread, at most; a larger one would come off the memory that a form may take."""


class Refused(Exception):
    """The form cannot be used; the text says why."""


class TooSlow(Refused):
    """It could not be used this time: how long something takes is the machine's matter, too."""


@dataclass(slots=True)
class Trial:
    """A form being judged by a process of its own. `pipe` is what that process writes."""

    number: int
    seconds: float
    pid: int
    pipe: int
    began: float
    spent: float = 0.0
    said: bytes = b""

    def hear(self, more: bytes) -> None:
        """What its process says; once it has compiled, its time begins anew, for the walk."""
        if not self.said and more:
            self.began, self.spent = time.monotonic(), _processor_seconds(self.pid)
        self.said += more

    def overdue(self) -> bool:
        """Whether it has had its time."""
        took = time.monotonic() - self.began
        if took >= PATIENCE * self.seconds:
            return True
        return took >= self.seconds and _processor_seconds(self.pid) - self.spent >= self.seconds

    def verdict(self, status: int, killed: bool) -> dict[str, Any]:
        """What came of it, once its process has ended with `status`."""
        compiled = self.said.startswith(_COMPILED)
        answer = self.said.removeprefix(_COMPILED)
        if answer.endswith(b"\n"):
            return {"id": self.number, "lost": "", **json.loads(answer)}
        if killed and compiled:
            refused = "it compiles, but its answers cannot be followed: each token takes too long"
        elif killed:
            refused = f"compiling it takes longer than {self.seconds:g} s"
        elif os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGABRT:
            name = signal.Signals(os.WTERMSIG(status)).name
            refused = f"compiling it crashes the compiler ({name})"
        else:
            refused = _NO_MEMORY
        return {"id": self.number, "refused": refused, "passing": True, "lost": ""}


class Compiler:
    """The loop between the service and the processes that judge."""

    def __init__(self, told: dict[str, Any]) -> None:
        import xgrammar

        self._tokenizer = xgrammar.TokenizerInfo.deserialize_json(told["tokenizer"])
        # Once here, so that what it sets up for itself is there in each process that judges.
        # One thread: those that go on would not be in a fork.
        first = xgrammar.GrammarCompiler(self._tokenizer, max_threads=1, cache_enabled=False)
        walk(first.compile_json_schema('{"type": "object"}'), self._tokenizer.vocab_size, 0.1)
        self.raw_patterns = not _takes(first, "^.$", '"\u00e9"') or _takes(first, "^.$", '"""')
        self.raw_patterns = self.raw_patterns or not _takes(first, "a|b", '"a"')
        self._processes = int(told["processes"])
        self._memory = int(told["memory"])
        self._compact = bool(told["compact"])
        self._waiting: deque[dict[str, Any]] = deque()
        self._trials: dict[int, Trial] = {}
        self._selector = selectors.DefaultSelector()

    def run(self, forms: int, verdicts: int) -> None:
        """Judges what comes on the descriptor `forms` until it is closed."""
        self._selector.register(forms, selectors.EVENT_READ)
        _say(verdicts, {"ready": True, "raw_patterns": self.raw_patterns})
        unread = b""
        while True:
            timeout = 0.02 if self._trials else None
            for key, _ in self._selector.select(timeout):
                if key.fd == forms:
                    more = os.read(forms, 1 << 16)
                    if not more:
                        return
                    *lines, unread = (unread + more).split(b"\n")
                    self._waiting.extend(map(json.loads, lines))
                else:
                    trial = self._trials[key.fd]
                    more = os.read(key.fd, _MOST_VERDICT)
                    trial.hear(more)
                    if not more:
                        _say(verdicts, self._end(trial, killed=False))
            for trial in [trial for trial in self._trials.values() if trial.overdue()]:
                os.kill(trial.pid, signal.SIGKILL)
                _say(verdicts, self._end(trial, killed=True))
            while self._waiting and len(self._trials) < self._processes:
                form = self._waiting.popleft()
                try:
                    self._begin(form)
                except OSError as error:
                    lost = f"no process can be begun to judge it: {error.strerror}"
                    told = {"id": form["id"], "refused": "", "passing": True, "lost": lost}
                    _say(verdicts, told)

    def kill_all(self) -> None:
        """Ends every trial."""
        for trial in self._trials.values():
            os.kill(trial.pid, signal.SIGKILL)
            os.waitpid(trial.pid, 0)

    def _begin(self, form: dict[str, Any]) -> None:
        reading, writing = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            os.close(reading)
            os.close(writing)
            raise
        if pid == 0:
            try:
                self._judge(form, writing)
            finally:
                os._exit(0)
        os.close(writing)
        trial = Trial(form["id"], float(form["seconds"]), pid, reading, time.monotonic())
        self._trials[reading] = trial
        self._selector.register(reading, selectors.EVENT_READ)

    def _end(self, trial: Trial, killed: bool) -> dict[str, Any]:
        self._selector.unregister(trial.pipe)
        del self._trials[trial.pipe]
        os.close(trial.pipe)
        _, status = os.waitpid(trial.pid, 0)
        return trial.verdict(status, killed)

    def _judge(self, form: dict[str, Any], verdict: int) -> None:
        """In a process of its own: compiles, walks, says what is wrong."""
        seconds = float(form["seconds"])
        # The kernel ends it as well, should the loop that is to kill it be gone.
        signal.setitimer(signal.ITIMER_REAL, 2 * PATIENCE * seconds + 1)
        # The stacks of its threads count as its data. Where they find no room, xgrammar hangs.
        memory = _data_bytes() + self._memory + THREADS * _STACK
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        refused, passing = "", False
        try:
            compiled = self._compile(form["kind"], form["text"])
            os.write(verdict, _COMPILED)
            walk(compiled, self._tokenizer.vocab_size, _WALK_SHARE * seconds)
        except Refused as wrong:
            refused, passing = str(wrong), isinstance(wrong, TooSlow)
        except MemoryError:
            refused, passing = _NO_MEMORY, True
        except Exception as wrong:  # noqa: BLE001 - the edge: whatever xgrammar says of a form
            refused = _cause(wrong)
            passing = refused == _NO_MEMORY
        os.write(verdict, json.dumps({"refused": refused, "passing": passing}).encode() + b"\n")

    def _compile(self, kind: str, text: str) -> Any:
        import xgrammar

        compiler = xgrammar.GrammarCompiler(
            self._tokenizer, max_threads=THREADS, cache_enabled=False
        )
        grammar, began = xgrammar.Grammar, time.process_time()
        if kind in ("json_schema", "json_object"):
            schema = text if kind == "json_schema" else '{"type": "object"}'
            grammar.from_json_schema(schema)
        elif kind == "regex":
            grammar.from_regex(text)
        elif kind == "structural_tag":
            grammar.from_structural_tag(text)
        else:
            grammar.from_ebnf(text)
        if time.process_time() - began > CONVERSION_S:
            raise TooSlow("it is too large: reading it alone would hold up other requests")
        if kind in ("json_schema", "json_object"):
            return compiler.compile_json_schema(schema, any_whitespace=not self._compact)
        if kind == "regex":
            return compiler.compile_regex(text)
        if kind == "structural_tag":
            return compiler.compile_structural_tag(text)
        return compiler.compile_grammar(text)


def walk(compiled: Any, vocabulary: int, seconds: float) -> None:
    """Goes through some answers token by token, as the engine core will. Raises Refused.

    A form of two dozen characters may compile in no time and then take for ever over the fourth
    token: its grammar has more and more ways to read the same text. No limit on compiling finds
    that. The tokens are drawn with a seed, so that a form is judged alike each time; an answer
    goes on as long as the form lets it.
    """
    import xgrammar

    draw = random.Random(0)  # noqa: S311 - nothing secret is drawn
    mask = xgrammar.allocate_token_bitmask(1, vocabulary)
    until = time.thread_time() + seconds
    matcher, answer = xgrammar.GrammarMatcher(compiled), list[int]()
    ends = frozenset(matcher.stop_token_ids)
    for position in range(_WALKED_TOKENS):
        began = time.thread_time()
        if began > until:
            return
        matcher.fill_next_token_bitmask(mask, 0)
        token = _draw(draw, mask[0].numpy(), ends)
        if token is None:
            if position == 0:
                raise Refused("no answer has this form")
            matcher.reset()
            answer.clear()
            continue
        matcher.accept_token(token)
        if time.thread_time() - began > TOKEN_S and _slow_again(compiled, mask, answer, token):
            raise TooSlow("each token of its answers takes too long to find")
        answer.append(token)
        if matcher.is_terminated():
            matcher.reset()
            answer.clear()


def _slow_again(compiled: Any, mask: Any, answer: list[int], token: int) -> bool:
    """Whether the token after that answer takes too long once more, on a matcher of its own.

    A single time says little: a machine that takes its processor away has it look long.
    """
    import xgrammar

    matcher = xgrammar.GrammarMatcher(compiled)
    for earlier in answer:
        matcher.accept_token(earlier)
    began = time.thread_time()
    matcher.fill_next_token_bitmask(mask, 0)
    matcher.accept_token(token)
    return time.thread_time() - began > TOKEN_S


def _takes(compiler: Any, pattern: str, text: str) -> bool:
    """Whether a string of that pattern may be written so."""
    import xgrammar

    schema = json.dumps({"type": "string", "pattern": pattern})
    try:
        compiled = compiler.compile_json_schema(schema)
    except RuntimeError:
        return False
    matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
    return bool(matcher.accept_string(text)) and bool(matcher.is_terminated())


def _draw(draw: random.Random, mask: Any, ends: frozenset[int]) -> int | None:
    """One of the allowed tokens, an end of the answer only where nothing else is allowed."""
    words = mask.nonzero()[0]
    end = None
    for _ in range(8):
        if not len(words):
            break
        word = int(words[draw.randrange(len(words))])
        bits = int(mask[word]) & 0xFFFFFFFF
        allowed = [word * 32 + bit for bit in range(32) if bits >> bit & 1]
        others = [token for token in allowed if token not in ends]
        if others:
            return draw.choice(others)
        end = allowed[0]
        words = words[words != word]
    return end


def _cause(wrong: Exception) -> str:
    """What xgrammar says, without where in its sources it says so, and on one line."""
    text = str(wrong).strip().splitlines()[0] if str(wrong).strip() else type(wrong).__name__
    if os.strerror(errno.EAGAIN) in text:
        return _NO_MEMORY  # a thread's stack is memory, too, and its lack has another name
    _, found, rest = text.partition(".cc:")
    return (rest.partition(": ")[2] if found else text)[:200].strip() or "it is not valid"


def _bound_stacks() -> None:
    """Begins this program anew where its stacks, which are sized at its start, are too large."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft == resource.RLIM_INFINITY or soft > _STACK:
        resource.setrlimit(resource.RLIMIT_STACK, (_STACK, hard))
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - its own command


def _data_bytes() -> int:
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 1 << 30


def _processor_seconds(pid: int) -> float:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return 0.0
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _say(descriptor: int, verdict: dict[str, Any]) -> None:
    os.write(descriptor, json.dumps(verdict).encode() + b"\n")


def main() -> None:
    """Reads what it is told from stdin, and then judges until stdin is closed."""
    _bound_stacks()
    # Whatever a library prints must not be taken for a verdict.
    verdicts = os.dup(1)
    os.dup2(2, 1)
    os.nice(_NICE)
    first = b""
    while not first.endswith(b"\n"):
        more = os.read(0, 1 << 20)
        if not more:
            return
        first += more
    # PyTorch would look for GPUs, and no driver of one is to be in the processes begun here.
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        os.putenv(name, "")  # where drivers look
    try:
        compiler = Compiler(json.loads(first))
    except Exception as error:
        _say(verdicts, {"failed": f"{type(error).__name__}: {error}"[:200]})
        raise
    gc.collect()
    gc.freeze()
    try:
        compiler.run(0, verdicts)
    except Exception as error:
        # Its text may quote a form.
        _say(verdicts, {"failed": type(error).__name__})
        raise
    finally:
        compiler.kill_all()


if __name__ == "__main__":
    main()
