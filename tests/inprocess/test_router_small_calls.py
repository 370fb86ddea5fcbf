"""Embeddings and token counts through a router: whose text may go to the cloud, and whose not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from anabranch.v1 import errors_pb2, model_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.quotas.rules import Unit
from services.chassis.settings import Secret
from tests.support.auth import bearer
from tests.support.entities import CARD
from tests.support.inprocess import Cluster, cluster, model_stub
from tests.support.provider import KEY, Provider, routes_file, simulator
from tests.support.quotas import refused, rule
from tests.support.waiting import BOUND_S

MODEL = "vectors"
PRICES = {
    **dict.fromkeys(("input", "cached_input"), 1_000_000),
    "output": 0,
    "source": "a test",
    "as_of": "2026-01-01",
}
ROUTE = {"provider": "openai", "model": "own-embedding", "capabilities": ["embed"]}
COUNTED = {"provider": "moonshot", "model": "kimi", "context_length": 1000}
ROUTES: dict[str, dict[str, Any]] = {MODEL: ROUTE | {"prices": PRICES}, "counted": COUNTED}
EMBED = model_pb2.EmbedRequest(model=MODEL, inputs=[f"pay with {CARD}"])
COUNT = model_pb2.CountTokensRequest(
    model="counted",
    request=pb.GenerateRequest(
        messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=f"by {CARD}")])]
    ),
)
MASKS = "masking: [card]"
MASKS_FOR_ONE = "tenants: {shop: {mask: [card]}}"
BUDGET = 'tenants: {shop: {cloud_budget: {usd: "1.00", period: 30d}}}'
BUDGET_OF_ALL = 'budgets: {cloud: {usd: "1.00", period: 30d}}'
NO_MONEY = 'tenants: {shop: {cloud_budget: {usd: "0.00", period: 30d}}}'
OTHERS = 'tenants: {museum: {mask: [card], cloud: false, cloud_budget: {usd: "1.00", period: 30d}}}'


class Scene:
    """A caller of the tenant `shop`, and the provider that its text may come to."""

    def __init__(self, s: Cluster, provider: Provider, stub: Any, auth: Any) -> None:
        self.cluster, self.provider, self.stub, self.auth = s, provider, stub, auth

    async def embed(self) -> model_pb2.EmbedResponse:
        found: model_pb2.EmbedResponse = await self.stub.Embed(
            EMBED, metadata=self.auth, timeout=BOUND_S
        )
        return found

    async def asked(self) -> int:
        """How many requests came to the provider."""
        return len((await self.provider.state())["requests"])


@asynccontextmanager
async def scene(
    tmp_path: Path, policy: str = "", *, quotas: tuple[Any, ...] = (), local: str = ""
) -> AsyncIterator[Scene]:
    document = tmp_path / "policy.yaml"
    document.write_text(f"version: 1\n{policy}\n")
    engines = ({"model": local},) if local else ()
    async with (
        simulator(KEY) as provider,
        cluster(tmp_path, engines=engines, router={"policy": f"file:{document}"}) as s,
    ):
        await s.add_cloud(
            routes_file(tmp_path, provider.url, **ROUTES),
            api_keys=Secret(f"simulator={KEY} openai={KEY} moonshot={KEY}"),
            mask=("none",),
        )
        await s.backends_ready(len(engines) + 1)
        secret = await s.new_client("web", "generate")
        for quota in quotas:
            await s.set_quota("shop", "web", quota)
        auth = bearer(await s.token("web", secret))
        async with s.channel(s.router) as channel:
            yield Scene(s, provider, model_stub(channel), auth)


@pytest.mark.parametrize("policy", ["", OTHERS], ids=["no policy", "others limited"])
async def test_who_has_no_limit_and_no_mask_embeds_and_counts_in_the_cloud(tmp_path, policy):
    async with scene(tmp_path, policy, quotas=(rule(Unit.REQUESTS, 100),)) as s:
        assert len((await s.embed()).embeddings) == 1
        assert await s.asked() == 1
        counted = await s.stub.CountTokens(COUNT, metadata=s.auth, timeout=BOUND_S)
        assert counted.source == pb.Usage.SOURCE_PROVIDER
        assert await s.asked() == 2


@pytest.mark.parametrize(
    "policy", [BUDGET, BUDGET_OF_ALL, NO_MONEY], ids=["own", "all", "none left"]
)
async def test_who_has_a_cloud_budget_embeds_nothing_in_the_cloud(tmp_path, policy):
    async with scene(tmp_path, policy) as s:
        await _embeds_uncharged_nowhere(s)


async def test_who_has_a_quota_of_money_embeds_nothing_in_the_cloud(tmp_path):
    async with scene(tmp_path, quotas=(rule(Unit.COST, 10**9),)) as s:
        await _embeds_uncharged_nowhere(s)


async def _embeds_uncharged_nowhere(s: Scene) -> None:
    fault = await refused(s.stub.Embed(EMBED, metadata=s.auth, timeout=BOUND_S))
    assert fault.reason == errors_pb2.ERROR_REASON_BUDGET_EXHAUSTED
    assert "not charged to budgets" in fault.message
    assert fault.retry_after is None
    assert await s.asked() == 0


@pytest.mark.parametrize("policy", [MASKS, MASKS_FOR_ONE], ids=["all", "own"])
async def test_of_who_is_masked_nothing_is_embedded_or_counted_in_the_cloud(tmp_path, policy):
    async with scene(tmp_path, policy) as s:
        for call, request in ((s.stub.Embed, EMBED), (s.stub.CountTokens, COUNT)):
            fault = await refused(call(request, metadata=s.auth, timeout=BOUND_S))
            assert fault.reason == errors_pb2.ERROR_REASON_ACCESS_DENIED
            assert "masked" in fault.message
        assert await s.asked() == 0


async def test_who_is_kept_local_is_told_that_nothing_can_take_it(tmp_path):
    async with scene(tmp_path, "tenants: {shop: {cloud: false}}") as s:
        for call, request in ((s.stub.Embed, EMBED), (s.stub.CountTokens, COUNT)):
            fault = await refused(call(request, metadata=s.auth, timeout=BOUND_S))
            assert fault.reason == errors_pb2.ERROR_REASON_NO_BACKEND
        assert await s.asked() == 0


async def test_a_masked_tenants_tokens_are_counted_by_a_local_engine(tmp_path):
    async with scene(tmp_path, MASKS, local="counted") as s:
        found = await s.stub.CountTokens(COUNT, metadata=s.auth, timeout=BOUND_S)
        assert found.prompt_tokens
        assert await s.asked() == 0


@pytest.mark.parametrize("policy", [MASKS, BUDGET], ids=["masked", "limited"])
async def test_a_local_engine_is_asked_to_embed_and_the_cloud_is_not(tmp_path, policy):
    async with scene(tmp_path, policy, local=MODEL) as s:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await s.embed()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED, "the engine's own word"
        assert await s.asked() == 0
