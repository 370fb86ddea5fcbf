"""The client against the real services: auth, router and sim engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from anabranch import (
    AccessDeniedError,
    AsyncClient,
    AuthenticationError,
    FinishReason,
    InvalidRequestError,
    NotFoundError,
    Tier,
    Verdict,
)
from tests.support.auth import until
from tests.support.inprocess import MODEL, Cluster, cluster


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path, engines=[{}, {}]) as running:
        yield running


@pytest.fixture
async def client(running: Cluster) -> AsyncIterator[AsyncClient]:
    assert running.router is not None
    async with AsyncClient(
        running.router.address,
        auth_target=running.auth.address,
        client_id="web",
        client_secret=await running.new_client("web", "generate"),
    ) as client:
        yield client


async def test_an_answer_comes_through_the_router_with_its_receipt(client: AsyncClient) -> None:
    answer = await client.generate(model=MODEL, messages="hello", max_tokens=12)
    assert len(answer.choices[0].token_ids) == 12
    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.receipt is not None
    assert answer.receipt.tier is Tier.LOCAL
    assert answer.receipt.ttft is not None


async def test_many_answers_at_once_are_each_whole(client: AsyncClient) -> None:
    answers = await asyncio.gather(
        *(
            client.generate(model=MODEL, prompt=f"n {n}", max_tokens=5 + n, ignore_eos=True)
            for n in range(50)
        )
    )
    assert [len(a.choices[0].token_ids) for a in answers] == [5 + n for n in range(50)]


async def test_refusals_arrive_as_their_own_errors(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequestError) as invalid:
        await client.generate(model=MODEL, messages="x", top_p=7.0, temperature=-1.0)
    fields = {v.field for v in invalid.value.violations}
    assert fields == {"sampling.top_p", "sampling.temperature"}
    with pytest.raises(NotFoundError):
        await client.generate(model="no-such", messages="x")
    with pytest.raises(AccessDeniedError):
        await client.backends()


async def test_a_bad_secret_is_an_authentication_error(running: Cluster) -> None:
    assert running.router is not None
    async with AsyncClient(
        running.router.address,
        auth_target=running.auth.address,
        client_id="web",
        client_secret="wrong",
    ) as client:
        with pytest.raises(AuthenticationError):
            await client.generate(model=MODEL, messages="x")
    async with AsyncClient(running.router.address, token="nonsense") as client:
        with pytest.raises(AuthenticationError):
            await client.generate(model=MODEL, messages="x")


async def test_an_operator_looks_and_drains(running: Cluster) -> None:
    assert running.router is not None
    async with AsyncClient(running.router.address, token=await running.token()) as admin:
        first, second = await admin.backends()
        assert (await admin.drain(first.backend_id)).drained
        explained = await admin.explain(model=MODEL, messages="x")
        assert explained.verdict is Verdict.DISPATCH
        assert explained.backend_id == second.backend_id
        assert not (await admin.undrain(first.backend_id)).drained
        assert [m.name for m in await admin.models()] == [MODEL]


async def test_leaving_early_frees_the_engine(running: Cluster, client: AsyncClient) -> None:
    async with client.stream(
        model=MODEL, messages="x", max_tokens=20_000, ignore_eos=True
    ) as stream:
        async for _ in stream:
            break

    async def idle() -> bool:
        return all(b.in_flight == 0 for b in await running.backends())

    await until(idle)


async def test_an_engine_that_goes_away_mid_answer_is_not_noticed(
    running: Cluster, client: AsyncClient
) -> None:
    async with client.stream(model=MODEL, messages="x", max_tokens=300, ignore_eos=True) as stream:
        async for _ in stream:
            break
        gone = asyncio.gather(*(engine.stop() for engine in running.engines[:1]))
        async for _ in stream:
            pass
        await gone
    assert len(stream.answer.choices[0].token_ids) == 300


async def test_the_prompt_is_counted(client: AsyncClient) -> None:
    counted = await client.count_tokens(model=MODEL, prompt="one two three")
    assert counted.prompt_tokens > 0
    assert counted.context_length > 0
