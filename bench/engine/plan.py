"""What is compared and under which loads. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, Self

MODEL = "bench"
"""What callers call the model, whichever it is."""


class Path(Enum):
    """A way from a prompt to its tokens."""

    OFFLINE = "offline"
    ASYNC = "async"
    SERVE = "serve"
    SESSION = "session"
    ROUTER = "router"

    @property
    def label(self) -> str:
        """For people."""
        return _LABELS[self]

    @property
    def engine(self) -> str:
        """The process with the model that it ends in; two paths share one."""
        return "engine" if self in (Path.SESSION, Path.ROUTER) else self.value

    @property
    def remote(self) -> bool:
        """Whether callers are processes of their own."""
        return self in (Path.SERVE, Path.SESSION, Path.ROUTER)


_LABELS = {
    Path.OFFLINE: "vllm.LLM, offline",
    Path.ASYNC: "AsyncLLM, in process",
    Path.SERVE: "vllm serve, HTTP",
    Path.SESSION: "Anabranch engine, session",
    Path.ROUTER: "Anabranch router, session",
}


@dataclass(frozen=True)
class Model:
    """The model, and how every path's vLLM is told to run it. Zero and empty: vLLM's choice.

    `simulated`: no model at all but the simulated engine, to show that the benchmark works.
    """

    path: str
    dtype: str
    max_model_len: int = 1024
    max_num_batched_tokens: int = 0
    gpu_memory_utilization: float = 0.9
    kv_cache_gib: int = 2
    """Of a CPU."""
    load_format: str = ""
    further: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of vLLM, the same for every path."""
    simulated: bool = False


@dataclass(frozen=True)
class Objective:
    """Within which a request counts for goodput, in seconds."""

    ttft: float
    tpot: float


@dataclass(frozen=True)
class Plan:
    """One run. Every number of streams is looked at on every path in every round."""

    model: Model
    device: str
    """"gpu" or "cpu": which targets count, and what the results are called."""
    paths: tuple[Path, ...]
    streams: tuple[int, ...]
    rounds: int
    prompt_tokens: int
    output_tokens: int
    objective: Objective
    clients: int
    """Caller processes over HTTP at most."""
    session_clients: int
    """Caller processes with a session each at most."""
    alternate: bool
    """All paths are up at once and take turns within each round; or one after the other, each with
    all of its rounds."""
    together: bool = False
    """Engines of an alternating run start at once, not one after the other."""
    cancels: int = 3
    """Times that streams are cancelled, where it is told what the KV cache holds."""
    budget: float = 0.0
    """Seconds after which no further look is begun; 0: none."""
    asks: int = 1
    """Requests that each stream makes at least, one after the other."""

    @property
    def slots(self) -> int:
        """Sequences that every path's vLLM runs at once."""
        return max(*self.streams, LEAST_SLOTS)

    def takes(self, path: Path) -> tuple[int, ...]:
        """Numbers of streams, least first."""
        return tuple(sorted(set(self.streams)))

    def waves(self, streams: int) -> int:
        """How often a look's streams ask, one answer after the other."""
        return max(self.asks, waves(streams))

    def callers(self, path: Path, streams: int) -> int:
        """Caller processes of a look; none where path and caller are one process."""
        if not path.remote:
            return 0
        return max(1, min(self.clients if path is Path.SERVE else self.session_clients, streams))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"paths": [path.value for path in self.paths]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """From what `to_json` made."""
        return cls(
            **{
                **found,
                "model": Model(**found["model"]),
                "objective": Objective(**found["objective"]),
                "paths": tuple(Path(name) for name in found["paths"]),
                "streams": tuple(found["streams"]),
            }
        )


LEAST_SLOTS = 8
"""Slots that every path has at least: one stream beside the others shows that they have gone."""

WAVES_UNTIL = 4
"""A look of fewer streams asks again until so many requests were made: one alone says little."""


def waves(streams: int) -> int:
    """How often so many streams must ask for WAVES_UNTIL requests."""
    return -(-WAVES_UNTIL // streams)
