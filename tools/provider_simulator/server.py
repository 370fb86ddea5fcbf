"""The simulator's HTTP side: the chat endpoint, its faults, and the endpoints that steer them."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections import deque
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from tools.provider_simulator.answers import LABEL, Answer, Reply, reply
from tools.provider_simulator.faults import Fault, FaultQueue

_HEADERS = {"x-simulator": "1"}
_CREATED = 1_767_225_600  # the same on every run: answers are functions of the request


class Simulator:
    """State and handlers.

    `token_delay` in seconds before each piece of a stream, `first_delay` before its first one
    (None: the same). `watched` are texts: the requests that hold one are counted, however they end.
    """

    def __init__(
        self,
        keys: frozenset[str],
        token_delay: float = 0.0,
        *,
        first_delay: float | None = None,
        watched: Iterable[str] = (),
    ) -> None:
        self._keys = keys
        self._token_delay = token_delay
        self._first_delay = token_delay if first_delay is None else first_delay
        self._watched = dict.fromkeys(watched, 0)
        self._faults = FaultQueue()
        self.open = 0
        self.served = 0
        self.aborted = 0
        self.seen = 0
        self._bodies: deque[dict[str, Any]] = deque(maxlen=32)
        self._peers: deque[str] = deque(maxlen=32)

    def application(self) -> web.Application:
        """The aiohttp application. Run it with `handler_cancellation=True`."""
        app = web.Application(client_max_size=32 << 20)
        for path in ("/v1/chat/completions", "/chat/completions", "/beta/chat/completions"):
            app.router.add_post(path, self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/_sim/state", self._state)
        app.router.add_post("/_sim/fault", self._add_fault)
        app.router.add_delete("/_sim/fault", self._clear_faults)
        return app

    # Steering

    async def _state(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "simulator": True,
                "open": self.open,
                "served": self.served,
                "aborted": self.aborted,
                "seen": self.seen,
                "watched": self._watched,
                "faults": self._faults.waiting(),
                "requests": list(self._bodies),
                "connections": len(set(self._peers)),
            },
            headers=_HEADERS,
        )

    async def _add_fault(self, request: web.Request) -> web.Response:
        try:
            self._faults.add(await request.json())
        except (ValueError, AttributeError, TypeError) as bad:
            return web.json_response({"error": str(bad)}, status=400, headers=_HEADERS)
        return web.json_response({"faults": self._faults.waiting()}, headers=_HEADERS)

    async def _clear_faults(self, request: web.Request) -> web.Response:
        self._faults.clear()
        return web.json_response({"faults": []}, headers=_HEADERS)

    async def _models(self, request: web.Request) -> web.Response:
        models = [{"id": name, "object": "model"} for name in ("sim-chat", "sim-reasoner")]
        return web.json_response({"object": "list", "data": models}, headers=_HEADERS)

    # Chat

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.seen += 1
        self.open += 1
        peer = request.transport.get_extra_info("peername") if request.transport else None
        self._peers.append(str(peer))
        try:
            response = await self._answer(request)
        except (asyncio.CancelledError, ConnectionResetError):
            # The other side left before the end.
            self.aborted += 1
            raise
        finally:
            self.open -= 1
        self.served += 1
        return response

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        for text in self._watched:
            self._watched[text] += text.encode() in raw
        offered = request.headers.get("Authorization", "").removeprefix("Bearer ")
        offered = request.headers.get("api-key", offered)
        if not any(hmac.compare_digest(offered.encode(), key.encode()) for key in self._keys):
            # Real providers quote the key like this, which is why nobody may pass it on.
            return _error(401, f"Incorrect API key provided: {offered}.", "invalid_api_key")
        try:
            body = json.loads(raw)
            answer = reply(body)
        except (ValueError, KeyError, TypeError, AttributeError) as bad:
            return _error(400, str(bad), "invalid_request_error")
        self._bodies.append(body)
        fault = self._faults.take()
        refusal = await self._before(fault)
        if refusal is not None:
            return refusal
        if not body.get("stream"):
            return web.json_response(_whole(body, answer), headers=_HEADERS)
        delays = (self._first_delay, self._token_delay)
        return await _Stream(request, body, answer, fault, delays).send()

    async def _before(self, fault: Fault) -> web.Response | None:
        """Faults that show before the response begins."""
        params = fault.params
        if fault.kind == "hang":
            await asyncio.Event().wait()
        if fault.kind == "slow_headers":
            await asyncio.sleep(fault.number("seconds", 1))
        if fault.kind == "redirect":
            location = str(params.get("location", "http://127.0.0.1:9/"))
            return web.Response(status=302, headers={**_HEADERS, "location": location})
        if fault.kind == "wrong_content_type":
            kind = str(params.get("type", "text/html"))
            return web.Response(text="<html>a portal</html>", content_type=kind, headers=_HEADERS)
        if fault.kind not in ("429", "5xx", "4xx"):
            return None
        status = {"429": 429, "5xx": 503, "4xx": 400}[fault.kind]
        status = int(params.get("status", status))
        hints = {
            name.replace("_", "-"): str(params[name])
            for name in ("retry_after", "retry_after_ms", "x_ms_retry_after_ms")
            if name in params
        }
        if "should_retry" in params:
            hints["x-should-retry"] = str(params["should_retry"]).lower()
        return _error(
            status,
            str(params.get("message", f"simulated {status}")),
            str(params.get("code", "simulated")),
            str(params.get("param", "")),
            hints,
        )


class _Stream:
    """One streamed answer, with the fault that spoils it."""

    def __init__(
        self,
        request: web.Request,
        body: dict[str, Any],
        answer: Reply,
        fault: Fault,
        delays: tuple[float, float],
    ) -> None:
        self._request = request
        self._body = body
        self._reply = answer
        self._fault = fault
        if fault.kind == "trickle":
            delays = (fault.number("seconds", 0.05),) * 2
        self._first_delay, self._delay = delays
        self._response = web.StreamResponse(
            headers={**_HEADERS, "Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        self._pieces = 0

    async def send(self) -> web.StreamResponse:
        await self._response.prepare(self._request)
        await self._write(b": simulator\n\n")
        await self._spoil()
        for number, answer in enumerate(self._reply.answers):
            await self._choice(number, answer)
        await self._usage()
        if self._fault.kind != "no_done":
            await self._write(b"data: [DONE]\n\n")
        await self._response.write_eof()
        return self._response

    async def _choice(self, number: int, answer: Answer) -> None:
        await self._delta(number, {"role": "assistant", "content": None if answer.calls else ""})
        for piece in answer.reasoning:
            await self._piece(number, {"content": None, "reasoning_content": piece})
        for piece in answer.text:
            await self._piece(number, {"content": piece})
        for index, call in enumerate(answer.calls):
            function = {"name": call.name, "arguments": ""}
            head = {"index": index, "id": call.id, "type": "function", "function": function}
            await self._piece(number, {"tool_calls": [head]})
        # Interleaved on purpose: fragments of parallel calls must be told apart by their index.
        longest = max((len(c.arguments) for c in answer.calls), default=0)
        for start in range(0, longest, 7):
            for index, call in enumerate(answer.calls):
                part = call.arguments[start : start + 7]
                if part:
                    fragment = {"index": index, "function": {"arguments": part}}
                    await self._piece(number, {"tool_calls": [fragment]})
        if self._fault.kind == "no_finish":
            return
        finish = answer.finish
        if self._fault.kind == "finish":
            finish = str(self._fault.params.get("reason", "unheard_of"))
        await self._delta(number, {}, finish)

    async def _usage(self) -> None:
        wanted = (self._body.get("stream_options") or {}).get("include_usage")
        if not wanted or self._fault.kind == "no_usage":
            return
        for _ in range(3 if self._fault.kind == "duplicate_usage" else 1):
            await self._event({"choices": [], "usage": self._reply.usage.document()})

    async def _piece(self, number: int, delta: dict[str, Any]) -> None:
        delay = self._delay if self._pieces else self._first_delay
        if delay:
            await asyncio.sleep(delay)
        await self._delta(number, delta)
        self._pieces += 1
        await self._spoil()

    async def _spoil(self) -> None:
        """Faults that show after so many pieces."""
        kind = self._fault.kind
        default = {"error_after_200": 0, "keepalive_only": 0, "giant_line": 0}.get(kind, 2)
        if kind == "giant_response":
            default = 0
        if self._pieces != int(self._fault.number("after", default)):
            return
        if kind == "stall":
            await asyncio.Event().wait()
        elif kind in ("keepalive_only", "keepalive_stall"):
            while True:
                await self._write(b": keep-alive\n\n")
                await asyncio.sleep(self._fault.number("seconds", 0.02))
        elif kind == "cut":
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError
        elif kind == "garbage":
            await self._write(b"data: {\xff\xfe not json\n\n")
        elif kind == "error_after_200":
            message = {"message": "simulated failure", "type": "server_error", "code": 500}
            await self._event({"error": self._fault.params.get("error", message)})
        elif kind == "giant_line":
            await self._write(b"data: " + b"x" * int(self._fault.number("bytes", 2e6)) + b"\n\n")
        elif kind == "giant_response":
            for _ in range(int(self._fault.number("bytes", 2e6)) // 1000):
                await self._delta(0, {"content": "x" * 1000})

    async def _delta(self, number: int, delta: dict[str, Any], finish: str | None = None) -> None:
        choice = {"index": number, "delta": delta, "finish_reason": finish}
        await self._event({"choices": [choice], "usage": None})

    async def _event(self, document: dict[str, Any]) -> None:
        head = {**_head(self._body), "object": "chat.completion.chunk"}
        text = json.dumps({**head, **document}, ensure_ascii=False)
        await self._write(b"data: " + text.encode() + b"\n\n")

    async def _write(self, data: bytes) -> None:
        await self._response.write(data)


def _head(body: dict[str, Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-simulator", "created": _CREATED, "model": body.get("model")}


def _whole(body: dict[str, Any], answer: Reply) -> dict[str, Any]:
    choices = []
    for number, one in enumerate(answer.answers):
        message: dict[str, Any] = {"role": "assistant", "content": "".join(one.text) or None}
        if one.reasoning:
            message["reasoning_content"] = "".join(one.reasoning)
        if one.calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in one.calls
            ]
        choices.append({"index": number, "message": message, "finish_reason": one.finish})
    usage = answer.usage.document()
    return {**_head(body), "object": "chat.completion", "choices": choices, "usage": usage}


def _error(
    status: int, message: str, code: str, param: str = "", headers: dict[str, str] | None = None
) -> web.Response:
    error = {"message": f"{LABEL} {message}", "type": code, "code": code, "param": param or None}
    return web.json_response(
        {"error": error}, status=status, headers={**_HEADERS, **(headers or {})}
    )
