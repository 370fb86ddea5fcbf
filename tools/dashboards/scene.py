"""A cluster whose dashboards have something to show: prices, budgets, an audit trail, callers.

Used to test the dashboards and to draw pictures of them. Prices, budgets and ratings are invented;
requests, answers and figures are real. What is started is tools.cluster's.
"""

from __future__ import annotations

import asyncio
import json
import random
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import grpc

from anabranch import AsyncClient
from anabranch.errors import AnabranchError
from anabranch.types import Answer
from anabranch.v1 import auth_pb2, auth_pb2_grpc
from anabranch.vocabulary import Residency, Tier
from tools.cluster import Cluster, EngineSpec
from tools.cluster.recipes import PROVIDER_KEY, Ports, at

_TOPICS = ("rivers", "bridges", "lighthouses", "canals", "ferries", "tides", "locks", "deltas")


def cluster(run_dir: Path, engines: Sequence[EngineSpec], ttft_slo: float) -> Cluster:
    """A cluster, not yet started, with the engines' models also in the cloud, at a price.

    What is not expected to have a first token within `ttft_slo` seconds goes to the cloud.
    """
    ports = Ports.free()
    files = run_dir / "scene"
    files.mkdir(parents=True, exist_ok=True)
    key = files / "provider-key"
    key.write_text(PROVIDER_KEY + "\n", encoding="ascii")
    key.chmod(0o600)
    price = {"input": 3_000_000, "cached_input": 300_000, "output": 15_000_000}
    prices = {**price, "source": "https://docs.river.example/pricing", "as_of": "2026-11-01"}
    offer = {
        "provider": "simulator",
        "model": "sim-chat",
        "base_url": f"http://{at(ports.provider)}",
        "api_key_file": str(key),
        "prices": prices,
    }
    models = [{"name": name, **offer} for name in sorted({engine.model for engine in engines})]
    budgets = {
        "all": {"usd": "2.00", "period": "1d"},
        "providers": {"simulator": {"usd": "1.50", "period": "1d"}},
    }
    # JSON is YAML.
    (files / "models.yaml").write_text(json.dumps({"models": models}), encoding="utf-8")
    (files / "budgets.yaml").write_text(json.dumps(budgets), encoding="utf-8")
    return Cluster(
        run_dir,
        engines=engines,
        ports=ports,
        router_settings={"TTFT_SLO": str(ttft_slo), "AUDIT_DIR": str(files / "audit-router")},
        others_settings={
            "auth": {"AUDIT_DIR": str(files / "audit-auth")},
            "cloud": {
                "MODELS_FILE": str(files / "models.yaml"),
                "BUDGETS_FILE": str(files / "budgets.yaml"),
            },
        },
    )


def scraped(cluster: Cluster) -> dict[str, str]:
    """What a Prometheus scrapes: job → host:port of every process with metrics."""
    running = cluster.processes.values()
    return {process.spec.name: process.spec.http for process in running if process.spec.http}


class Callers:
    """Makes requests as callers do: many at once, some given up, some wrong, some rated."""

    def __init__(self, cluster: Cluster, model: str, seed: int = 1) -> None:
        """Ratings and prompts are drawn with `seed`."""
        self._cluster = cluster
        self._model = model
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._client = AsyncClient(cluster.router)

    async def __aenter__(self) -> Self:
        await self._client.close()
        # With a secret, so that tokens are renewed.
        self._client = AsyncClient(
            self._cluster.router,
            client_id="demo",
            client_secret=self._cluster.credentials["demo"],
            auth_target=self._cluster.auth,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(
        self, tokens: int, residency: Residency = Residency.LOCAL_FIRST, model: str = ""
    ) -> Answer | None:
        """One request, with a rating where it is answered; None where it is not."""
        topic = self._random.choice(_TOPICS)
        prompt = f"Tell a story about {topic}, and send it to somebody@example.org."
        try:
            answer = await self._client.generate(
                model=model or self._model,
                messages=prompt,
                max_tokens=tokens,
                residency=residency,
            )
            await self._rate(answer)
        except AnabranchError:
            return None
        return answer

    async def _rate(self, answer: Answer) -> None:
        cloudy = answer.receipt is not None and answer.receipt.tier is Tier.CLOUD
        rating = self._random.choice((3, 4, 5) if cloudy else (4, 4, 5))
        completed = self._random.random() < 0.95
        await self._client.feedback(answer, rating=rating, completed=completed)

    async def give_up(self, tokens: int) -> None:
        """One request that its caller leaves after the first tokens."""
        try:
            async with self._client.stream(
                model=self._model, messages="Tell a story.", max_tokens=tokens
            ) as stream:
                async for chunk in stream:
                    if chunk.token_ids:
                        return
        except AnabranchError:
            return

    async def follow(self, tokens: int, begun: asyncio.Event) -> None:
        """One private request, read to its end; `begun` is set when its first token is here."""
        async with self._client.stream(
            model=self._model,
            messages="Tell a story.",
            max_tokens=tokens,
            ignore_eos=True,
            residency=Residency.LOCAL_ONLY,
        ) as stream:
            async for chunk in stream:
                if chunk.token_ids:
                    begun.set()

    async def together(self, count: int, tokens: int) -> list[Answer | None]:
        """So many requests at once, one in twelve given up, one in thirty for an unknown model."""
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                if number % 12 == 11:
                    group.create_task(self.give_up(tokens))
            asked = [
                group.create_task(self.ask(tokens, model="unheard-of" if n % 30 == 29 else ""))
                for n in range(count)
            ]
        return [task.result() for task in asked]

    async def log_in_badly(self) -> None:
        """A login with a wrong secret."""
        wrong = auth_pb2.IssueTokenRequest(client_id="demo", client_secret="guessed")  # noqa: S106
        async with grpc.aio.insecure_channel(self._cluster.auth) as channel:
            try:
                await auth_pb2_grpc.AuthServiceStub(channel).IssueToken(wrong, timeout=30.0)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                    raise


async def spoil_provider(cluster: Cluster, count: int) -> None:
    """The provider simulator refuses the next `count` requests with status 503."""
    fault: Mapping[str, object] = {"kind": "5xx", "count": count}
    await _tell_provider(cluster, "POST", json.dumps(fault).encode())


async def spare_provider(cluster: Cluster) -> None:
    """It works again, whatever it still was to refuse."""
    await _tell_provider(cluster, "DELETE", None)


async def _tell_provider(cluster: Cluster, method: str, body: bytes | None) -> None:
    url = f"http://{at(cluster.ports.provider)}/_sim/fault"
    request = urllib.request.Request(url, data=body, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    await asyncio.to_thread(lambda: opener.open(request, timeout=10.0).close())
