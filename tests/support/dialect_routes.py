"""Routes of a cloud proxy to the provider simulator, one dialect each, by real profiles."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from services.cloud_proxy.dialect_table import DIALECTS as CODECS
from tests.support.cloud import Proxy, cloud_proxy
from tests.support.official import AWS_KEY
from tests.support.provider import KEY

PROFILES = {
    "openai_chat": "openai-compatible",
    "anthropic": "anthropic",
    "gemini": "gemini",
    "ollama": "ollama",
    "bedrock_converse": "bedrock",
}
DIALECTS = sorted(CODECS)
"""All that the proxy has a codec for."""

KEYS = dict.fromkeys(PROFILES.values(), KEY) | {"bedrock": AWS_KEY}
_PRICES = {
    "input": 1_000_000,
    "cached_input": 100_000,
    "output": 2_000_000,
    "source": "invented for the simulator",
    "as_of": "2026-01-01",
}


def _entry(dialect: str, model: str) -> dict[str, Any]:
    return {
        "provider": PROFILES[dialect],
        "model": model,
        "context_length": 32768,
        "max_output": 4096,
        "capabilities": ["generate", "tools", "reasoning"],
        "prices": _PRICES,
    }


EMBEDDERS = {
    "openai_chat": ("openai", "sim-embed"),
    "gemini": ("gemini", "gemini-embedding-001"),
    "ollama": ("ollama", "sim-embed"),
    "bedrock_converse": ("bedrock", "cohere.embed-multilingual-v3"),
}
"""Profile and model for vectors, by dialect; Anthropic has none."""


@asynccontextmanager
async def speaking(
    tmp_path: Path, dialect: str, *, accepted: tuple[str, ...] = (KEY, AWS_KEY), **changes: Any
) -> AsyncIterator[Proxy]:
    """A proxy whose models speak one dialect: `chat-of-DIALECT`, `reasoner-of-DIALECT`,
    `whole-of-DIALECT`, which does not stream, and where there is one `vectors-of-DIALECT`."""
    profile = PROFILES[dialect]
    routes = {
        f"{kind}-of-{dialect}": _entry(dialect, f"sim-{kind}")
        for kind in ("chat", "reasoner", "whole")
    }
    routes[f"whole-of-{dialect}"]["streaming"] = False
    # The simulator's own profile has routes too.
    keys = f"simulator={KEY} {profile}={KEYS[profile]}"
    if dialect in EMBEDDERS:
        embedder, model = EMBEDDERS[dialect]
        keys += "" if embedder == profile else f" {embedder}={KEY}"
        routes[f"vectors-of-{dialect}"] = {
            "provider": embedder,
            "model": model,
            "capabilities": ["embed"],
            "prices": _PRICES,
        }
    async with cloud_proxy(
        tmp_path, keys=keys, accepted=accepted, routes=routes, **changes
    ) as proxy:
        yield proxy
