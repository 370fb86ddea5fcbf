"""Other names that a backend has for its model are names at the router, too."""

from __future__ import annotations

from pathlib import Path

from anabranch import AsyncClient, FinishReason
from tests.support.inprocess import MODEL, cluster

ENGINES = ({"model_aliases": ("river", "stream")}, {"model_aliases": ("river", "brook")})


async def test_a_backends_alias_is_asked_for_at_the_router_and_listed_beside_its_model(
    tmp_path: Path,
):
    async with cluster(tmp_path, engines=ENGINES) as running:
        assert running.router is not None
        async with AsyncClient(running.router.address, token=await running.token()) as client:
            for name in (MODEL, "river", "stream", "brook"):
                answer = await client.generate(model=name, messages="x", max_tokens=2)
                assert answer.finish_reason is FinishReason.LENGTH, name
            (listed,) = await client.models()
    assert listed.name == MODEL
    assert sorted(listed.aliases) == ["brook", "river", "stream"]


async def test_a_policy_may_name_a_backends_alias(tmp_path: Path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\naliases: {chat: [{model: river}]}\n")
    async with cluster(tmp_path, engines=ENGINES, router={"policy": f"file:{policy}"}) as running:
        assert running.router is not None
        async with AsyncClient(running.router.address, token=await running.token()) as client:
            answer = await client.generate(model="chat", messages="x", max_tokens=2)
            assert answer.finish_reason is FinishReason.LENGTH
            assert [model.name for model in await client.models()] == ["chat", MODEL]
