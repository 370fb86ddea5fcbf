"""The fake engine's third door: streamed chat completions over HTTP/1.1, as OpenAI's API has them.

For gateways that speak nothing else. As lean as the other doors: every event is ready-made, and an
answer is nothing but writes, one a token. The request's `seed` is the time of a step in ms: every
gateway passes it on, whatever it makes of a model's name. Only streams are served; it
authenticates nobody.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

from bench.dataplane.requests import OPENAI_MODEL, WORD, WORDS
from bench.dataplane.steps import LONGEST, Steps

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def _event(data: str) -> bytes:
    """One event as one chunk of the transfer coding."""
    body = f"data: {data}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(body), body)


def _delta(delta: dict[str, str], finish: str | None = None) -> bytes:
    return _event(
        json.dumps(
            {
                "id": "chatcmpl-0123456789abcdef",
                "object": "chat.completion.chunk",
                "created": 1_700_000_000,
                "model": OPENAI_MODEL,
                "choices": [
                    {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
                ],
            }
        )
    )


_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
_TOKENS = tuple(_delta({"content": word}) for word in WORDS)
_FIRST = _HEAD + _delta({"role": "assistant", "content": ""}) + _TOKENS[0]
_END = _event("[DONE]") + b"0\r\n\r\n"
_LAST = _delta({"content": WORD}, "length") + _END
_ONLY = _HEAD + _delta({"role": "assistant", "content": ""}) + _LAST

_MODEL = {"id": OPENAI_MODEL, "object": "model", "created": 1_700_000_000, "owned_by": "vllm"}
_INFORMATION: dict[str, dict[str, Any]] = {
    "/health": {},
    "/v1/models": {"object": "list", "data": [_MODEL | {"max_model_len": 32_768}]},
    "/version": {"version": "0"},
}
"""What gateways ask of a worker before they use it."""


class _Answer:
    """One running answer, on the connection that asked for it."""

    __slots__ = ("_at", "_over", "_tokens", "_write")

    def __init__(
        self, write: Callable[[bytes], None], tokens: int, over: Callable[[], None]
    ) -> None:
        self._write = write
        self._tokens = tokens
        self._over = over
        self._at = 0

    def step(self) -> bool:
        at = self._at = self._at + 1
        if at < self._tokens:
            self._write(_TOKENS[at & 1] if at > 1 else _FIRST)
            return False
        self._write(_LAST if at > 1 else _ONLY)
        self._over()
        return True

    def cut(self) -> None:
        """Nobody listens any more."""


class _Connection(asyncio.Protocol):
    """One connection: one request after the other, without pipelining."""

    def __init__(self, steps: Mapping[int, Steps]) -> None:
        self._steps = steps
        self._buffer = bytearray()
        self._cancel: Callable[[], None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop has transports of its own.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._cancel is not None:
            self._cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        found = _LENGTH.search(self._buffer, 0, end + 2)
        whole = end + 4 + (int(found[1]) if found else 0)
        if len(self._buffer) < whole:
            return
        method, path, _ = bytes(self._buffer[: self._buffer.find(b"\r\n")]).decode().split(" ", 2)
        body = bytes(self._buffer[end + 4 : whole])
        del self._buffer[:whole]
        if (method, path) == ("POST", "/v1/chat/completions"):
            self._complete(json.loads(body))
        elif method == "GET" and path in _INFORMATION:
            self._say(200, _INFORMATION[path])
        else:
            self._say(404, {"error": {"message": f"no {method} {path}", "code": 404}})

    def _complete(self, request: Mapping[str, Any]) -> None:
        steps = self._steps.get(request.get("seed", 0))
        if steps is None or not request.get("stream"):
            self._say(400, {"error": {"message": "streams of a known pace alone", "code": 400}})
            return
        tokens = request.get("max_completion_tokens") or request.get("max_tokens") or LONGEST
        self._cancel = steps.add(_Answer(self._write, min(int(tokens), LONGEST), self._over))

    def _over(self) -> None:
        self._cancel = None

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _say(self, status: int, content: Mapping[str, Any]) -> None:
        body = json.dumps(content).encode()
        self._write(
            b"HTTP/1.1 %d -\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (status, len(body), body)
        )


@asynccontextmanager
async def serving(address: str, steps: Mapping[int, Steps]) -> AsyncIterator[None]:
    """Listens on host:port until the context is left; `steps` by their pace in ms."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(steps), host, int(port), backlog=4096)
    try:
        yield
    finally:
        server.close()
