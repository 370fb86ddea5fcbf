"""A process that reads the mock's streams with an SDK, and says what that cost it.

    python bench/cloud/reader.py KIND DIALECT URL STREAMS CHUNKS PACE

Prints one JSON line: CPU seconds of this process over the answers, those before the first one
left out, and how many chunks it was given. It stands alone: LiteLLM's environment has none of our
packages.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

KEY = "sk-bench-0123456789"
MODEL = "bench-model"
Ask = Callable[[str], AsyncIterator[Any]]


def prompt(chunks: int, pace: float) -> str:
    return f"chunks={chunks} pace={pace} id=reader"


def read_with_aiohttp(url: str) -> tuple[Ask, Callable[[], Any]]:
    import aiohttp

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def ask(text: str) -> AsyncIterator[Any]:
        body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": text}]}
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            while data := await response.content.readany():
                yield data

    return ask, session.close


def read_with_openai(url: str) -> tuple[Ask, Callable[[], Any]]:
    import openai

    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)

    async def ask(text: str) -> AsyncIterator[Any]:
        stream = await client.chat.completions.create(
            model=MODEL,
            stream=True,
            stream_options={"include_usage": True},
            messages=[{"role": "user", "content": text}],
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk

    return ask, client.close


def read_with_anthropic(url: str) -> tuple[Ask, Callable[[], Any]]:
    import anthropic

    client = anthropic.AsyncAnthropic(base_url=url, api_key=KEY, max_retries=0)

    async def ask(text: str) -> AsyncIterator[Any]:
        stream = await client.messages.create(
            model=MODEL,
            stream=True,
            max_tokens=4096,
            messages=[{"role": "user", "content": text}],
        )
        async for event in stream:
            if event.type == "content_block_delta":
                yield event

    return ask, client.close


def read_with_genai(url: str) -> tuple[Ask, Callable[[], Any]]:
    from google import genai

    client = genai.Client(api_key=KEY, http_options={"base_url": url})

    async def ask(text: str) -> AsyncIterator[Any]:
        stream = await client.aio.models.generate_content_stream(model=MODEL, contents=text)
        async for chunk in stream:
            yield chunk

    async def close() -> None:
        client.close()

    return ask, close


def read_with_litellm(url: str, dialect: str) -> tuple[Ask, Callable[[], Any]]:
    import litellm

    litellm.telemetry = False
    litellm.suppress_debug_info = True
    base, model = (
        (url, f"anthropic/{MODEL}") if dialect == "anthropic" else (f"{url}/v1", f"openai/{MODEL}")
    )

    async def ask(text: str) -> AsyncIterator[Any]:
        stream = await litellm.acompletion(
            model=model,
            api_base=base,
            api_key=KEY,
            stream=True,
            max_tokens=4096,
            num_retries=0,
            messages=[{"role": "user", "content": text}],
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk

    async def close() -> None:
        return

    return ask, close


async def main(kind: str, dialect: str, url: str, streams: int, chunks: int, pace: float) -> None:
    if kind == "litellm":
        ask, close = read_with_litellm(url, dialect)
    else:
        reader = {
            "aiohttp": read_with_aiohttp,
            "openai": read_with_openai,
            "anthropic": read_with_anthropic,
            "genai": read_with_genai,
        }[kind]
        ask, close = reader(url)
    seen = 0

    async def one(length: int) -> None:
        nonlocal seen
        async for _ in ask(prompt(length, pace)):
            seen += 1

    # What is imported and made at the first request is no cost of the later ones.
    await asyncio.gather(*(one(4) for _ in range(streams)))
    seen = 0
    before = time.process_time()
    await asyncio.gather(*(one(chunks) for _ in range(streams)))
    print(json.dumps({"cpu": time.process_time() - before, "chunks": seen}), flush=True)
    await close()


if __name__ == "__main__":
    _, kind, dialect, url, streams, chunks, pace = sys.argv
    work = main(kind, dialect, url, int(streams), int(chunks), float(pace))
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)
