"""Requests in each dialect as bare HTTP, to see what a simulator sends byte for byte."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.support.provider import KEY, Provider

HELLO = [{"role": "user", "content": "hello"}]
CONTENTS = {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}
BLOCKS = {"messages": [{"role": "user", "content": [{"text": "hello"}]}]}
STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai_chat": (
        "/v1/chat/completions",
        {
            "model": "sim",
            "messages": HELLO,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    "anthropic": (
        "/v1/messages",
        {"model": "sim", "messages": HELLO, "stream": True, "max_tokens": 99},
    ),
    "gemini": ("/v1beta/models/sim:streamGenerateContent?alt=sse", CONTENTS),
    "ollama": ("/api/chat", {"model": "sim", "messages": HELLO}),
    "bedrock_converse": ("/model/sim/converse-stream", BLOCKS),
}
"""Where a stream is asked for, and with what, by dialect."""

WHOLES = {
    "openai_chat": (STREAMS["openai_chat"][0], STREAMS["openai_chat"][1] | {"stream": False}),
    "anthropic": (STREAMS["anthropic"][0], STREAMS["anthropic"][1] | {"stream": False}),
    "gemini": ("/v1beta/models/sim:generateContent", CONTENTS),
    "ollama": (STREAMS["ollama"][0], STREAMS["ollama"][1] | {"stream": False}),
    "bedrock_converse": ("/model/sim/converse", BLOCKS),
}
"""The same for answers that come whole."""

HEADERS = {
    "openai_chat": {"Authorization": f"Bearer {KEY}"},
    "anthropic": {"x-api-key": KEY, "anthropic-version": "2023-06-01"},
    "gemini": {"x-goog-api-key": KEY},
    "ollama": {},
    "bedrock_converse": {"Authorization": f"Bearer {KEY}"},
}


@asynccontextmanager
async def asking(
    provider: Provider, dialect: str, *, whole: bool = False, **headers: str
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The response to a request, by its headers."""
    path, body = (WHOLES if whole else STREAMS)[dialect]
    async with (
        aiohttp.ClientSession(headers=HEADERS[dialect] | headers) as http,
        http.post(provider.url + path, json=body, allow_redirects=False) as response,
    ):
        assert response.headers["x-simulator"] == "1"
        yield response


async def heard(provider: Provider, dialect: str, *, whole: bool = False) -> tuple[bytes, bool]:
    """The bytes of an answer, and whether it came to a proper end."""
    data = b""
    async with asking(provider, dialect, whole=whole) as response:
        assert response.status == 200
        try:
            async for part in response.content.iter_any():
                data += part
        except aiohttp.ClientError:
            return data, False
    return data, True


async def begun(provider: Provider, dialect: str, wanted: bytes) -> bytes:
    """What came of an answer that never ends, once `wanted` was in it."""
    data = b""
    async with asking(provider, dialect) as response:
        while wanted not in data:
            data += await response.content.readany()
    return data
