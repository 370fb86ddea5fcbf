"""What is measured: the contenders, the load of a look, the figures to reach. Values only."""

from __future__ import annotations

from dataclasses import dataclass

DIALECTS = ("openai_chat", "anthropic", "gemini")
KEY = "sk-bench-0123456789"
MODEL = "bench-model"
PADS = ("pad ", "dap ")
"""What chunks hold in turn: LiteLLM takes a hundred equal ones for a model that has gone astray."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Who reads the mock's streams. `kind` is how: the proxy's process, or a reader's."""

    name: str
    kind: str
    dialect: str


CONTENDERS = (
    Contender("Anabranch, OpenAI chat", "proxy", "openai_chat"),
    Contender("Anabranch, Anthropic", "proxy", "anthropic"),
    Contender("Anabranch, Gemini", "proxy", "gemini"),
    Contender("aiohttp, bytes only", "aiohttp", "openai_chat"),
    Contender("openai SDK", "openai", "openai_chat"),
    Contender("anthropic SDK", "anthropic", "anthropic"),
    Contender("google-genai SDK", "genai", "gemini"),
    Contender("LiteLLM, OpenAI chat", "litellm", "openai_chat"),
    Contender("LiteLLM, Anthropic", "litellm", "anthropic"),
)


@dataclass(frozen=True, slots=True)
class Load:
    """So many answers at once, of `short` or `long` chunks, one every `pace` seconds.

    The slope between short and long ones is what a chunk costs, and what remains of the short ones
    what a request costs.
    """

    name: str
    streams: int
    pace: float
    short: int
    long: int


LOADS = (
    Load("few", 16, 0.01, 8, 264),
    Load("many", 240, 0.01, 8, 104),
    Load("unpaced", 64, 0.0, 8, 264),
)
QUICK_LOADS = (Load("few", 16, 0.01, 8, 72), Load("many", 120, 0.01, 8, 72))


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    rounds: int = 3
    loads: tuple[Load, ...] = LOADS
    many: int = 1000
    many_chunks: int = 100
    many_pace: float = 0.05
    cancel_pace: float = 0.01
    cancels: int = 100


QUICK = Plan(rounds=1, loads=QUICK_LOADS, cancels=20, many=200, many_chunks=40)

CHUNK_US = 25.0
REQUEST_MS = 1.5
MEMORY_MIB = 300 * 1e6 / 2**20
CANCEL_MS = 100.0
