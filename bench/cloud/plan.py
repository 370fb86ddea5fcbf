"""What is measured: the contenders, the load of a look, the figures to reach. Values only."""

from __future__ import annotations

from dataclasses import dataclass

DIALECTS = ("openai_chat", "anthropic", "gemini")
KEY = "sk-bench-0123456789"
MODEL = "bench-model"
PAD = "pad "
"""What a chunk's text is."""


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
class Plan:
    """One run. A look is `streams` answers at once, `answers` of them each in turn, of `short` or
    `long` chunks, one every `pace` seconds: the slope between the two is what a chunk costs, and
    what remains of the short ones what a request costs."""

    rounds: int = 5
    streams: int = 16
    answers: int = 2
    short: int = 8
    long: int = 264
    pace: float = 0.01
    many: int = 1000
    many_chunks: int = 100
    many_pace: float = 0.05
    cancels: int = 100


QUICK = Plan(rounds=1, answers=1, long=72, cancels=20, many=200, many_chunks=40)

CHUNK_US = 25.0
REQUEST_MS = 1.5
MEMORY_MIB = 300 * 1e6 / 2**20
CANCEL_MS = 100.0
