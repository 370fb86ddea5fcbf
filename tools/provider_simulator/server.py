"""The simulator's HTTP side: the providers' endpoints, and those that steer it."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from tools.provider_simulator import access, recordings
from tools.provider_simulator.answers import pieces, reply
from tools.provider_simulator.faults import Fault, FaultQueue, deviation, refusal
from tools.provider_simulator.sending import Manner, Sending, lengthened
from tools.provider_simulator.vectors import vector
from tools.provider_simulator.voices import (
    Asked,
    Endpoint,
    Operation,
    Piece,
    Received,
    Refusal,
    Voice,
)
from tools.provider_simulator.voices.table import VOICES
from tools.provider_simulator.wire import compact

_HEADERS = {"x-simulator": "1"}
_SENSELESS = (ValueError, KeyError, TypeError, AttributeError, IndexError)


class Simulator:
    """State and handlers.

    `token_delay` in seconds before each piece of a stream, `first_delay` before its first one
    (None: the same). `watched` are texts: the requests that hold one are counted, however they
    end. `directory` holds the recordings.
    """

    def __init__(
        self,
        keys: frozenset[str],
        token_delay: float = 0.0,
        *,
        first_delay: float | None = None,
        watched: Iterable[str] = (),
        directory: Path = recordings.DIRECTORY,
    ) -> None:
        self._keys = keys
        self._token_delay = token_delay
        self._first_delay = token_delay if first_delay is None else first_delay
        self._watched = dict.fromkeys(watched, 0)
        self._directory = directory
        self._faults = FaultQueue()
        self._began = time.monotonic()
        self.open = 0
        self.served = 0
        self.aborted = 0
        self.seen = 0
        self._aborted_at: float | None = None
        self._dialects = dict.fromkeys(VOICES, 0)
        self._bodies: deque[dict[str, Any]] = deque(maxlen=32)
        self._peers: deque[str] = deque(maxlen=32)

    def application(self) -> web.Application:
        """The aiohttp application. Run it with `handler_cancellation=True`."""
        app = web.Application(client_max_size=32 << 20)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/_sim/state", self._state)
        app.router.add_post("/_sim/fault", self._add_fault)
        app.router.add_delete("/_sim/fault", self._clear_faults)
        for voice in VOICES.values():
            for endpoint in voice.endpoints:
                app.router.add_post(endpoint.path, partial(self._serve, voice, endpoint))
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
                "dialects": self._dialects,
                "watched": self._watched,
                "faults": self._faults.waiting(),
                "requests": list(self._bodies),
                "connections": len(set(self._peers)),
                # Milliseconds since the simulator began.
                "now_ms": self._elapsed(time.monotonic()),
                "last_aborted_ms": self._elapsed(self._aborted_at),
            },
            headers=_HEADERS,
        )

    def _elapsed(self, then: float | None) -> int | None:
        return None if then is None else round((then - self._began) * 1000)

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

    # Providing

    async def _serve(
        self, voice: Voice, endpoint: Endpoint, request: web.Request
    ) -> web.StreamResponse:
        self.seen += 1
        self._dialects[voice.name] += 1
        self.open += 1
        peer = request.transport.get_extra_info("peername") if request.transport else None
        self._peers.append(str(peer))
        try:
            response = await self._answer(voice, endpoint, request)
        except (asyncio.CancelledError, ConnectionResetError):
            # The other side left before the end, or the connection was cut on purpose.
            self.aborted += 1
            self._aborted_at = time.monotonic()
            raise
        finally:
            self.open -= 1
        self.served += 1
        return response

    async def _answer(
        self, voice: Voice, endpoint: Endpoint, request: web.Request
    ) -> web.StreamResponse:
        raw = await request.read()
        for text in self._watched:
            self._watched[text] += text.encode() in raw
        url = f"http://{request.host}{request.raw_path}"
        denied = access.check(voice.name, self._keys, "POST", url, request.headers, raw)
        if denied is not None:
            return _refused(voice, denied)
        operation = endpoint.operation
        try:
            document = json.loads(raw)
            asked = voice.read(
                Received(
                    operation,
                    document,
                    request.headers,
                    request.query,
                    request.match_info.get("model", ""),
                    endpoint.streams,
                )
            )
            replayed = asked.model.startswith(recordings.PREFIX)
            if replayed:
                recorded = recordings.find(self._directory, asked.model)
                if recorded is None or not asked.stream:
                    return _refused(voice, Refusal(404, f"no stream {asked.model}", param="model"))
            else:
                # Before any fault: a senseless request is refused and takes none.
                self._whole(voice, operation, asked, Fault(""))
        except _SENSELESS as bad:
            what = f"missing field {bad}" if isinstance(bad, KeyError) else str(bad)
            return _refused(voice, Refusal(400, what, param=""))
        self._bodies.append(document)
        fault = self._faults.take()
        early = await self._before(voice, fault)
        if early is not None:
            return early
        headers = dict(_HEADERS)
        if fault.kind == "rate_limit_headers":
            headers |= {str(k): str(v) for k, v in fault.params.get("headers", {}).items()}
        if replayed and recorded is not None:
            headers["Content-Type"] = recorded.media_type
            seed = request.headers.get("x-sim-seed", str(fault.params.get("seed", 0)))
            manner = replace(self._manner(voice, fault, headers), greeting=b"")
            return await Sending(request, fault, manner).send(recorded.pieces(seed))
        if asked.stream:
            headers |= {"Content-Type": voice.media_type, "Cache-Control": "no-cache"}
            answer = lengthened(reply(asked.body), fault)
            sending = Sending(request, fault, self._manner(voice, fault, headers))
            return await sending.send(voice.stream(asked, answer, deviation(fault)))
        headers["Content-Type"] = "application/json"
        whole = self._whole(voice, operation, asked, fault)
        if fault.kind == "error_after_200":
            whole, _ = voice.refused(Refusal(500, "simulated failure"))
        return await Sending(request, fault, _plain(headers)).send(_quarters(whole))

    def _whole(
        self, voice: Voice, operation: Operation, asked: Asked, fault: Fault
    ) -> dict[str, Any]:
        """The answer as one document. Raises for a request that makes no sense."""
        if operation is Operation.EMBED:
            vectors = [vector(text, asked.dimension) for text in asked.inputs]
            return voice.embedded(asked, vectors, sum(len(pieces(t)) for t in asked.inputs))
        answer = lengthened(reply(asked.body), fault)
        if operation is Operation.COUNT:
            return voice.counted(answer.usage.prompt)
        return voice.whole(asked, answer, deviation(fault))

    def _manner(self, voice: Voice, fault: Fault, headers: dict[str, str]) -> Manner:
        return Manner(
            headers,
            self._first_delay,
            self._token_delay,
            voice.greeting,
            voice.keepalive,
            voice.garbage,
            lambda: voice.failure(fault.params),
            voice.giant,
        )

    async def _before(self, voice: Voice, fault: Fault) -> web.Response | None:
        """Faults that show before the response begins."""
        if fault.kind == "hang":
            await asyncio.Event().wait()
        if fault.kind == "slow_headers":
            await asyncio.sleep(fault.number("seconds", 1))
        if fault.kind == "redirect":
            location = str(fault.params.get("location", "http://127.0.0.1:9/"))
            return web.Response(status=302, headers={**_HEADERS, "location": location})
        if fault.kind == "wrong_content_type":
            kind = str(fault.params.get("type", "text/html"))
            return web.Response(text="<html>a portal</html>", content_type=kind, headers=_HEADERS)
        refused = refusal(fault, time.time())
        return None if refused is None else _refused(voice, refused)


def _plain(headers: dict[str, str]) -> Manner:
    """Faults in an answer that is one document. Keep-alives are white space in it."""
    return Manner(
        headers, 0.0, 0.0, b"", b"\n", b"{\xff\xfe", lambda: b"", lambda size: b" " * size
    )


def _quarters(document: dict[str, Any]) -> list[Piece]:
    """A document in four pieces, so that faults after some of them come before its end."""
    data = compact(document)
    size = -(-len(data) // 4)
    return [Piece(data[start : start + size], output=True) for start in range(0, len(data), size)]


def _refused(voice: Voice, refusal: Refusal) -> web.Response:
    document, more = voice.refused(refusal)
    status = _status(document, refusal)
    headers = {**_HEADERS, **more, **refusal.headers}
    return web.json_response(document, status=status, headers=headers)


def _status(document: dict[str, Any], refusal: Refusal) -> int:
    """The status that the body itself states, where a dialect does: Gemini's say it twice."""
    error = document.get("error")
    stated = error.get("code") if isinstance(error, dict) else None
    return stated if isinstance(stated, int) else refusal.status
