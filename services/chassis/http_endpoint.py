"""The small HTTP server beside gRPC: /metrics, /livez, /readyz, /startupz and what a service adds.

It is for scrapers, probes and a few standard documents, not for model traffic. It authenticates
nobody: handlers that need it do so themselves.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from typing import cast

from aiohttp import web

from services.chassis.health import Question
from services.chassis.registry.instances import join_address

_log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Render = Callable[[], str] | Callable[[], Awaitable[str]]

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS = "application/openmetrics-text"
_OPENMETRICS_TYPE = f"{_OPENMETRICS}; version=1.0.0; charset=utf-8"

PATHS = {
    Question.LIVENESS: "/livez",
    Question.READINESS: "/readyz",
    Question.STARTUP: "/startupz",
}
_YES = {Question.LIVENESS: "alive", Question.READINESS: "ready", Question.STARTUP: "started"}
# /healthz is the older name of /livez.
_PROBES = {"/healthz": Question.LIVENESS, **{path: question for question, path in PATHS.items()}}


class HttpEndpoint:
    """One listening HTTP server. Add routes, then `start`, then `close`.

    `listen` is host:port, or unix:/path for a socket file. `ask` decides what probes are told: why
    not, in a few words, or nothing for a yes. `metrics` renders the Prometheus text, as a coroutine
    or in a thread, and `openmetrics` what a scraper gets instead that accepts OpenMetrics. A
    request body may have `max_body_bytes`; it must arrive, and the handler answer, within
    `request_timeout` seconds. A connection may go `idle_timeout` seconds without a whole request
    head. With `tls` it speaks HTTPS, but for a socket file.
    """

    def __init__(
        self,
        listen: str,
        *,
        metrics: Render,
        ask: Callable[[Question], Awaitable[str]],
        max_body_bytes: int = 64 * 1024,
        request_timeout: float = 10.0,
        idle_timeout: float = 60.0,
        tls: ssl.SSLContext | None = None,
        openmetrics: Render | None = None,
    ) -> None:
        self._tls = tls
        self._openmetrics = openmetrics
        self._listen = listen
        self._metrics = metrics
        self._ask = ask
        self._timeout = request_timeout
        self._idle_timeout = idle_timeout
        self._runner: web.AppRunner | None = None
        self._address = ""
        self._app = web.Application(client_max_size=max_body_bytes, middlewares=[self._bounded])
        self.add_get("/metrics", self._answer_metrics)
        for path in _PROBES:
            self.add_get(path, self._answer_probe)

    @property
    def address(self) -> str:
        """The bound "host:port"; empty before `start`."""
        return self._address

    def add_get(self, path: str, handler: Handler) -> None:
        self._app.router.add_get(path, handler)

    def add_post(self, path: str, handler: Handler) -> None:
        self._app.router.add_post(path, handler)

    async def start(self) -> None:
        """Binds and answers. Raises OSError when the address cannot be bound, ValueError when it
        is not host:port; an empty host means every interface."""
        host, colon, port = self._listen.rpartition(":")
        path = self._listen.removeprefix("unix:") if self._listen.startswith("unix:") else ""
        if not path and (not colon or not port.isdigit()):
            raise ValueError(f"{self._listen!r} is not host:port")
        host = host.removeprefix("[").removesuffix("]")
        self._runner = web.AppRunner(
            self._app,
            access_log=None,
            # Counts from the connection's start or last answer, so it also ends a trickled head.
            keepalive_timeout=self._idle_timeout,
            lingering_time=1.0,
            max_line_size=8190,
            max_field_size=8190,
            shutdown_timeout=2.0,
        )
        await self._runner.setup()
        try:
            if path:
                await web.UnixSite(self._runner, path).start()
                self._address = self._listen
                return
            await web.TCPSite(
                self._runner, host or None, int(port), backlog=128, ssl_context=self._tls
            ).start()
        except OSError:
            await self.close()
            raise
        bound_host, bound_port = self._runner.addresses[0][:2]
        self._address = join_address(host or bound_host, bound_port)

    async def close(self) -> None:
        """Stops listening and ends what is open; without effect when not started."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    @web.middleware
    async def _bounded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            async with asyncio.timeout(self._timeout):
                return await handler(request)
        except TimeoutError:
            _log.warning("HTTP request took too long", extra={"path": request.path})
            # The rest of the request may still be on its way: this connection is of no more use.
            answer = web.Response(status=503, text="the request took too long\n")
            answer.force_close()
            return answer

    async def _answer_metrics(self, request: web.Request) -> web.Response:
        render, kind = self._metrics, _METRICS_TYPE
        if self._openmetrics is not None and _OPENMETRICS in request.headers.get("Accept", ""):
            render, kind = self._openmetrics, _OPENMETRICS_TYPE
        # Rendering walks every time series; in a thread it does not hold up the tokens.
        if iscoroutinefunction(render):
            text: str = await render()
        else:
            text = await asyncio.to_thread(cast(Callable[[], str], render))
        return web.Response(body=text.encode(), headers={"Content-Type": kind})

    async def _answer_probe(self, request: web.Request) -> web.Response:
        question = _PROBES[request.path]
        why_not = await self._ask(question)
        if why_not:
            return web.Response(status=503, text=f"not {_YES[question]}: {why_not}\n")
        return web.Response(text=f"{_YES[question]}\n")
