"""The mock provider: streams of three dialects as lean as can be, each chunk written by itself.

Ready-made events over bare HTTP/1.1, so that what is measured is the reader. The prompt says what
is wanted: "chunks=N pace=S id=I". A connection that is lost while it answers is noted with its id
and the moment, and told at GET /lost. It authenticates nobody.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from typing import cast

import uvloop

from bench.cloud.plan import MODEL, PADS

_WANTED = re.compile(rb"chunks=(\d+) pace=([\d.]+) id=(\w+)")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_OVER = b"0\r\n\r\n"


def _part(text: str) -> bytes:
    """One event or several as one chunk of the transfer coding."""
    body = text.encode()
    return b"%x\r\n%s\r\n" % (len(body), body)


def _data(document: object, name: str = "") -> str:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(document)}\n\n"


def _openai(delta: dict[str, str], finish: str | None = None) -> str:
    return _data(
        {
            "id": "chatcmpl-0123456789abcdef",
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": MODEL,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
    )


def _claude(kind: str, **fields: object) -> str:
    return _data({"type": kind, **fields}, kind)


def _said(text: str) -> dict[str, str]:
    return {"type": "text_delta", "text": text}


def _gemini(text: str, finish: str | None = None) -> str:
    candidate: dict[str, object] = {"content": {"parts": [{"text": text}], "role": "model"}}
    if finish:
        candidate["finishReason"] = finish
    usage = {"promptTokenCount": 9, "candidatesTokenCount": 9, "totalTokenCount": 18}
    return _data({"candidates": [candidate], "usageMetadata": usage, "modelVersion": MODEL})


_USAGE = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
_TEXT = {"type": "text", "text": ""}
_MESSAGE: dict[str, object] = {
    "id": "msg_0123456789",
    "type": "message",
    "role": "assistant",
    "model": MODEL,
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {"input_tokens": 9, "output_tokens": 1},
}
# For each dialect: what opens an answer, one chunk of it, and what ends it.
_SCRIPTS: dict[str, tuple[bytes, tuple[bytes, ...], bytes]] = {
    "openai_chat": (
        _part(_openai({"role": "assistant", "content": ""})),
        tuple(_part(_openai({"content": pad})) for pad in PADS),
        _part(
            _openai({}, "stop")
            + _data({"object": "chat.completion.chunk", "id": "c", "created": 1, "model": MODEL,
                     "choices": [], "usage": _USAGE})
            + "data: [DONE]\n\n"
        ),
    ),
    "anthropic": (
        _part(
            _claude("message_start", message=_MESSAGE)
            + _claude("content_block_start", index=0, content_block=_TEXT)
        ),
        tuple(
            _part(_claude("content_block_delta", index=0, delta=_said(pad))) for pad in PADS
        ),
        _part(
            _claude("content_block_stop", index=0)
            + _claude(
                "message_delta",
                delta={"stop_reason": "end_turn", "stop_sequence": None},
                usage={"output_tokens": 9},
            )
            + _claude("message_stop")
        ),
    ),
    "gemini": (
        b"",
        tuple(_part(_gemini(pad)) for pad in PADS),
        _part(_gemini(PADS[0], "STOP")),
    ),
}  # fmt: skip


def _dialect(path: str) -> str:
    if path.endswith("/chat/completions"):
        return "openai_chat"
    return "anthropic" if path.startswith("/v1/messages") else "gemini"


class _Connection(asyncio.Protocol):
    """One connection: one request after the other."""

    def __init__(self, lost: dict[str, float]) -> None:
        self._lost = lost
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answering = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop has transports of its own.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        if self._answering:
            self._lost[self._answering] = time.monotonic()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        found = _LENGTH.search(bytes(self._buffer[: end + 2]))
        whole = end + 4 + (int(found[1]) if found else 0)
        if len(self._buffer) < whole:
            return
        path = bytes(self._buffer[: self._buffer.find(b"\r\n")]).decode().split(" ")[1]
        wanted = _WANTED.search(bytes(self._buffer[end:whole]))
        del self._buffer[:whole]
        if wanted is None:
            self._tell(json.dumps(self._lost).encode() if path == "/lost" else b"{}")
            return
        opening, chunks, ending = _SCRIPTS[_dialect(path)]
        self._answering = wanted[3].decode()
        self._write(_HEAD + opening)
        self._go_on(int(wanted[1]), float(wanted[2]), chunks, ending)

    def _go_on(self, left: int, pace: float, chunks: tuple[bytes, ...], ending: bytes) -> None:
        if left:
            self._write(chunks[left % len(chunks)])
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(pace, self._go_on, left - 1, pace, chunks, ending)
            return
        self._answering = ""
        self._write(ending + _OVER)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _tell(self, body: bytes) -> None:
        self._write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (len(body), body)
        )


async def _serve(host: str, port: int) -> None:
    lost: dict[str, float] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(lost), host, port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True, help="host:port")
    host, _, port = parser.parse_args().listen.rpartition(":")
    uvloop.run(_serve(host, int(port)))
