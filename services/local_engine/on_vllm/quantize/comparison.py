"""Compares two checkpoints: a process for each, asked in turn, so that neither disturbs the other.

Accuracy first, then pace in rounds that alternate. What it finds is figures.py's to work out.
"""

from __future__ import annotations

import collections
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from services.local_engine.on_vllm.quantize.figures import (
    Accuracy,
    Pace,
    Scores,
    TextScore,
    accuracy,
    likeliest_answer,
)

TEXTS = Path(__file__).with_name("evaluation.json")
"""Sentences and questions of our own: `texts`, and `questions` with their answers."""

_ROOT = Path(__file__).parents[4]


class CannotCompare(Exception):
    """A checkpoint could not be loaded or asked; the text says why."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """How to compare. `share` is of a GPU's memory, for each of the two processes."""

    dtype: str = "auto"
    rounds: int = 5
    streams: tuple[int, ...] = (1, 16)
    tokens: int = 64
    eager: bool = False
    share: float = 0.4


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of it. `evaluator` is vllm, or transformers where vLLM cannot run the checkpoint
    here; then there is no pace, and `why` says what vLLM said."""

    evaluator: str
    why: str
    accuracy: Accuracy
    paces: tuple[Pace, ...]


def compare(
    original: Path, smaller: Path, conditions: Conditions, tell: Callable[[str, float], None]
) -> Comparison:
    """Loads both and asks them. Raises CannotCompare."""
    asked = json.loads(TEXTS.read_text("utf-8"))
    why = ""
    evaluator = "vllm"
    with contextlib.ExitStack() as stack:
        tell("loading the smaller checkpoint into vLLM", 0.0)
        try:
            small = stack.enter_context(_worker(smaller, "vllm", conditions))
        except CannotCompare as error:
            why, evaluator = str(error), "transformers"
            tell("vLLM cannot run it here: emulating its arithmetic instead", 0.1)
            small = stack.enter_context(_worker(smaller, evaluator, conditions))
        tell("loading the original", 0.2)
        large = stack.enter_context(_worker(original, evaluator, conditions))
        tell("scoring with the original", 0.4)
        before = _scores(large, asked)
        tell("scoring with the smaller checkpoint", 0.5)
        after = _scores(small, asked)
        paces = () if why else _paces(large, small, conditions, tell)
    tell("done", 1.0)
    return Comparison(evaluator, why, accuracy(before, after), paces)


class _Worker:
    """A running worker process; keeps the end of what it prints for when it fails."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self._process = process
        self._name = name
        self._tail: collections.deque[str] = collections.deque(maxlen=40)
        assert process.stderr is not None
        self._reader = threading.Thread(target=self._drain, args=(process.stderr,), daemon=True)
        self._reader.start()

    def ask(self, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Its answer; without a request, its word that it is ready."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if request is not None:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            self._reader.join(timeout=5)
            raise CannotCompare(f"{self._name}: {self._reason()}")
        return dict(json.loads(line))

    def _reason(self) -> str:
        """The most telling line: the last that names an error, or the last of all."""
        lines = [line for line in self._tail if line.strip()]
        errors = [line for line in lines if "Error" in line and "EngineDeadError" not in line]
        return (errors or lines or [f"ended with status {self._process.returncode}"])[-1].strip()

    def _drain(self, stream: IO[str]) -> None:
        self._tail.extend(line for line in stream)


@contextlib.contextmanager
def _worker(model: Path, evaluator: str, conditions: Conditions) -> Iterator[_Worker]:
    arguments = {
        "model": str(model),
        "with": evaluator,
        "dtype": conditions.dtype,
        "share": conditions.share,
        "eager": conditions.eager,
    }
    process = subprocess.Popen(  # noqa: S603 - our own module, by our own interpreter
        [sys.executable, "-m", f"{__package__}.worker", json.dumps(arguments)],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        worker = _Worker(process, model.name)
        worker.ask()
        yield worker
    finally:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _scores(worker: _Worker, asked: Mapping[str, Any]) -> Scores:
    found = worker.ask({"do": "score", "texts": asked["texts"], "questions": asked["questions"]})
    texts = tuple(
        TextScore(tuple(one["logprobs"]), tuple(one["tokens"]), tuple(one["likeliest"]))
        for one in found["texts"]
    )
    answers = iter(found["answers"])
    right = []
    for question in asked["questions"]:
        options = (question["right"], *question["wrong"])
        each = [(next(answers), len(option.encode())) for option in options]
        right.append(likeliest_answer(each) == 0)
    return Scores(texts, tuple(right))


def _paces(
    large: _Worker, small: _Worker, conditions: Conditions, tell: Callable[[str, float], None]
) -> tuple[Pace, ...]:
    found: dict[int, tuple[list[float], list[float]]] = {n: ([], []) for n in conditions.streams}
    for streams in conditions.streams:  # the first of each is a warm-up
        _pace(large, streams, 4)
        _pace(small, streams, 4)
    for number in range(conditions.rounds):
        tell(
            f"pace, round {number + 1} of {conditions.rounds}",
            0.6 + 0.4 * number / conditions.rounds,
        )
        for streams in conditions.streams:
            # Who begins alternates as well: a machine that warms up favours neither.
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                worker = (large, small)[which]
                found[streams][which].append(_pace(worker, streams, conditions.tokens))
    return tuple(Pace(n, tuple(a), tuple(b)) for n, (a, b) in found.items())


def _pace(worker: _Worker, streams: int, tokens: int) -> float:
    found = worker.ask({"do": "pace", "streams": streams, "tokens": tokens})
    return float(found["tokens"]) / float(found["seconds"])
