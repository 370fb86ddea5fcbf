"""What a supervised service says over HTTP: /metrics, /healthz and /readyz for all of its workers.

Asks the workers over their private sockets at each scrape; it remembers nothing of theirs.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence

import aiohttp
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.process_collector import ProcessCollector

from services.chassis import openmetrics
from services.chassis.http_endpoint import HttpEndpoint
from services.chassis.resources import ResourceCollector
from services.chassis.workers.child import Child
from services.chassis.workers.exposition import merge

_log = logging.getLogger(__name__)

_ANSWER_WITHIN_S = 3.0
SUPERVISOR = "supervisor"
"""The value of the label `worker` on the supervisor's own series."""


class Front:
    """The HTTP endpoint of the supervisor."""

    def __init__(
        self,
        listen: str,
        children: Callable[[], Sequence[Child]],
        wanted: int,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._children = children
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        # Here for all: what the workers use is one container's, and each would tell of all of it.
        self._registry.register(ResourceCollector())
        Gauge("anabranch_workers", "Workers that there should be", registry=self._registry).set(
            wanted
        )
        self._serving = Gauge(
            "anabranch_workers_serving", "Workers that serve", registry=self._registry
        )
        self.deaths = Counter(
            "anabranch_worker_deaths", "Workers that ended unasked", registry=self._registry
        )
        self.http = HttpEndpoint(
            listen,
            metrics=self._metrics,
            openmetrics=self._as_openmetrics,
            ready=lambda: self._count() > 0,
            tls=tls,
        )

    def _count(self) -> int:
        return sum(child.serving.is_set() and not child.leaving for child in self._children())

    async def _metrics(self) -> str:
        return await self._all(generate_latest, "text/plain")

    async def _as_openmetrics(self) -> str:
        return await self._all(openmetrics.render, "application/openmetrics-text")

    async def _all(self, render: Callable[[CollectorRegistry], bytes], accept: str) -> str:
        self._serving.set(self._count())
        asked = [child for child in self._children() if child.reachable]
        texts = await asyncio.gather(*(_metrics_of(child, accept) for child in asked))
        found = {str(child.index): text for child, text in zip(asked, texts, strict=True) if text}
        # In a thread: what it reads of the machine may take milliseconds.
        own = (await asyncio.to_thread(render, self._registry)).decode()
        return await asyncio.to_thread(merge, {SUPERVISOR: own, **found})


async def _metrics_of(child: Child, accept: str) -> str:
    """The worker's own text; nothing when it does not answer, which its series then show."""
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(child.http_socket),
                timeout=aiohttp.ClientTimeout(total=_ANSWER_WITHIN_S),
            ) as session,
            session.get("http://worker/metrics", headers={"Accept": accept}) as answer,
        ):
            return await answer.text() if answer.status == 200 else ""
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        _log.warning(
            "a worker's metrics cannot be read",
            extra={"worker": child.index, "cause": type(error).__name__},
        )
        return ""
