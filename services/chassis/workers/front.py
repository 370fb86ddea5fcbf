"""What a supervised service says over HTTP: /metrics and the probes, for all of its workers.

Asks the workers over their private sockets at each scrape and probe. Of what they said it remembers
only that the start is complete.
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
from services.chassis.health import Question
from services.chassis.http_endpoint import HttpEndpoint
from services.chassis.resources import ResourceCollector
from services.chassis.workers.child import Child
from services.chassis.workers.exposition import merge
from services.chassis.workers.questions import get, probe

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
        self._started = False
        self.http = HttpEndpoint(
            listen,
            metrics=self._metrics,
            openmetrics=self._as_openmetrics,
            ask=self.ask,
            tls=tls,
        )

    async def ask(self, question: Question) -> str:
        """Why not, of the service as a whole; empty for a yes.

        It has started once a worker served, and it is ready while one of them is. It is alive while
        each worker that serves is: a dead one is replaced, but the kernel goes on bringing callers
        to one that is stuck.
        """
        serving = self._serving_now()
        self._started = self._started or bool(serving)
        if question is Question.STARTUP:
            return "" if self._started else "no worker has served yet"
        answers = await asyncio.gather(*(probe(child, question) for child in serving))
        if question is Question.READINESS:
            if not serving:
                return "no worker serves"
            return "" if "" in answers else answers[0]
        return next(filter(None, answers), "")

    def _serving_now(self) -> list[Child]:
        return [c for c in self._children() if c.serving.is_set() and not c.leaving]

    async def _metrics(self) -> str:
        return await self._all(generate_latest, "text/plain")

    async def _as_openmetrics(self) -> str:
        return await self._all(openmetrics.render, "application/openmetrics-text")

    async def _all(self, render: Callable[[CollectorRegistry], bytes], accept: str) -> str:
        self._serving.set(len(self._serving_now()))
        asked = [child for child in self._children() if child.reachable]
        texts = await asyncio.gather(*(_metrics_of(child, accept) for child in asked))
        found = {str(child.index): text for child, text in zip(asked, texts, strict=True) if text}
        # In a thread: what it reads of the machine may take milliseconds.
        own = (await asyncio.to_thread(render, self._registry)).decode()
        return await asyncio.to_thread(merge, {SUPERVISOR: own, **found})


async def _metrics_of(child: Child, accept: str) -> str:
    """The worker's own text; nothing when it does not answer, which its series then show."""
    try:
        status, text = await get(child, "/metrics", _ANSWER_WITHIN_S, accept=accept)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        _log.warning(
            "a worker's metrics cannot be read",
            extra={"worker": child.index, "cause": type(error).__name__},
        )
        return ""
    return text if status == 200 else ""
