"""The benchmark's bare ends for gateways over HTTP: every token arrives, and is counted once."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from bench.dataplane import openai_server
from bench.dataplane.meter import Meter
from bench.dataplane.openai_load import OpenAILoad, unchunked
from bench.dataplane.requests import WORDS, chat
from bench.dataplane.steps import Steps
from tools.cluster.ports import free_port

PATIENCE_S = 60.0


@asynccontextmanager
async def engine():
    """The door of an engine without pace; its address."""
    address, steps = f"127.0.0.1:{free_port()}", Steps(0)
    work = asyncio.create_task(steps.run())
    async with openai_server.serving(address, {0: steps}):
        yield address
    work.cancel()


async def say(address: str, raw: bytes, until: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(raw)
    answer = await asyncio.wait_for(reader.readuntil(until), PATIENCE_S)
    writer.close()
    return answer


def post(body: bytes) -> bytes:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def loaded(address: str, requests: int, tokens: int = 5) -> Meter:
    """What the caller counts in at least so many answers."""
    meter = Meter()
    load = OpenAILoad(address, meter, pace_ms=0, tokens=tokens, watched=True, seed=1)
    work = asyncio.create_task(load.run())
    async with asyncio.timeout(PATIENCE_S):
        while meter.requests < requests and not meter.errors:
            await asyncio.sleep(0.002)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    return meter


@pytest.mark.parametrize("tokens", [1, 2, 7])
async def test_an_answer_has_the_tokens_that_were_asked_for_and_ends(tokens):
    async with engine() as address:
        answer = await say(address, post(chat(0, tokens)), b"\r\n0\r\n\r\n")
    events = [
        line.removeprefix(b"data: ")
        for line in unchunked(answer.partition(b"\r\n\r\n")[2]).split(b"\n\n")
        if line
    ]
    assert events.pop() == b"[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events]
    said = [c["delta"]["content"] for c in choices if c["delta"]["content"]]
    assert len(said) == tokens
    assert set(said) <= set(WORDS)
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["length"]


async def test_no_answer_says_the_same_twice_in_a_row():
    # LiteLLM ends an answer that does, after a hundred times.
    async with engine() as address:
        answer = await say(address, post(chat(0, 9)), b"\r\n0\r\n\r\n")
    said = [word for word in WORDS * 8 if f'"{word}"'.encode() in answer]
    assert set(said) == set(WORDS)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /nothing HTTP/1.1\r\n\r\n", b"404"),
        (post(b'{"stream": false}'), b"400"),
        (post(chat(77, 1)), b"400"),
    ],
)
async def test_what_gateways_ask_besides_is_answered(raw, status):
    async with engine() as address:
        head = await say(address, raw, b"\r\n\r\n")
    assert head.split()[1] == status


async def test_the_caller_counts_each_token_once_and_asks_again():
    async with engine() as address:
        meter = await loaded(address, 20)
    assert not meter.errors
    # The first answer has a length of its own, and the last one may be under way.
    assert 19 * 5 < meter.tokens <= 5 * (meter.requests + 1)
    assert len(meter.ttfts) >= 20


@pytest.mark.parametrize("size", [1, 3, 50, 1000])
async def test_a_token_that_a_gateway_cuts_in_two_is_still_one(size):
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A gateway with chunks of its own size."""
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
            body = await reader.readexactly(length)
            answer = await say(address, post(body), b"\r\n0\r\n\r\n")
            head, _, chunks = answer.partition(b"\r\n\r\n")
            content = unchunked(chunks)
            writer.write(head + b"\r\n\r\n")
            for at in range(0, len(content), size):
                part = content[at : at + size]
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    async with engine() as address:
        gateway = await asyncio.start_server(relay, "127.0.0.1", 0)
        port = gateway.sockets[0].getsockname()[1]
        meter = await loaded(f"127.0.0.1:{port}", 3)
        gateway.close()
    assert not meter.errors
    assert meter.requests >= 3


async def test_a_refusal_is_an_error_and_not_a_token():
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")

    gateway = await asyncio.start_server(refuse, "127.0.0.1", 0)
    meter = await loaded(f"127.0.0.1:{gateway.sockets[0].getsockname()[1]}", 1)
    gateway.close()
    assert list(meter.errors) == ["HTTP/1.1 503 Busy"]
    assert meter.tokens == 0
