"""The provider simulator's own promises: its pace, and what it counts."""

from __future__ import annotations

import time

import aiohttp

from tests.support.provider import KEY, simulator

PATH = "/v1/chat/completions"


def asking(text: str, **more: object) -> dict[str, object]:
    return {"model": "sim-chat", "messages": [{"role": "user", "content": text}], **more}


async def post(url: str, body: dict[str, object], key: str = KEY) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(url + PATH, json=body) as response,
    ):
        await response.read()
        return response.status


async def test_watched_texts_are_counted_in_every_request_that_arrives_even_a_refused_one():
    async with simulator(watched=("[stays inside]", "nobody says this")) as provider:
        assert await post(provider.url, asking("hello")) == 200
        assert await post(provider.url, asking("the plan [stays inside]")) == 200
        assert await post(provider.url, asking("a [stays inside] b"), key="wrong") == 401
        state = await provider.state()
    assert state["watched"] == {"[stays inside]": 2, "nobody says this": 0}
    assert state["seen"] == 3


async def test_the_first_piece_waits_for_its_own_delay_and_the_others_for_theirs():
    async with simulator(first_delay=0.2, token_delay=0.0) as provider:
        started = time.perf_counter()
        await post(provider.url, asking("words=2", stream=True))
        first = time.perf_counter() - started
    async with simulator(first_delay=0.0, token_delay=0.1) as provider:
        started = time.perf_counter()
        await post(provider.url, asking("words=2", stream=True))
        further = time.perf_counter() - started
    # Bounds from below only: a machine may be late, a sleep is never short.
    assert first >= 0.2
    assert further >= 0.3
