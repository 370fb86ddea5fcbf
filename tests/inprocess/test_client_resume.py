"""The client and a router with a network between them that is cut, stalls and comes back.

Real services, real sockets. The sim engine's tokens are a function of the prompt and the position,
so an answer across cuts is compared token by token with one that had none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anabranch import (
    AsyncClient,
    BackendLostError,
    FinishReason,
    SessionLostError,
    UnavailableError,
    Work,
)
from anabranch.streams import AnswerStream
from anabranch.types import Answer
from anabranch.v1 import auth_pb2, auth_pb2_grpc, model_pb2
from services.chassis.detached_sessions import ResumableSessions
from tests.support.auth import bearer, until
from tests.support.cuttable import CuttableProxy, cuttable
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub
from tests.support.waiting import BOUND_S


@dataclass
class Scene:
    """A client, and the cuttable network between it and the router."""

    cluster: Cluster
    network: CuttableProxy
    client: AsyncClient
    secret: str

    def slow(self, times: float) -> None:
        """From its next step on the engine takes so many times as long."""
        self.cluster.engines[0].simulation.slowdown = times

    @property
    def sessions(self) -> ResumableSessions:
        assert self.cluster.router is not None
        assert self.cluster.router.model_service is not None
        return self.cluster.router.model_service.resumable

    def ask(self, prompt: str, tokens: int) -> AnswerStream:
        return self.client.stream(model=MODEL, prompt=prompt, max_tokens=tokens, ignore_eos=True)

    async def answer(self, prompt: str, tokens: int) -> Answer:
        async with self.ask(prompt, tokens) as stream:
            return await stream.finish()

    async def truth(self, prompt: str, tokens: int) -> list[int]:
        """The answer as it is without any cut."""
        assert self.cluster.router is not None
        address, token = self.cluster.router.address, await self.token()
        async with AsyncClient(address, token=token) as client:
            answer = await client.generate(
                model=MODEL, prompt=prompt, max_tokens=tokens, ignore_eos=True
            )
        return list(answer.choices[0].token_ids)

    async def token(self) -> str:
        return await self.cluster.token("shop", self.secret)

    async def in_flight(self) -> int:
        return sum(backend.in_flight for backend in await self.cluster.backends())

    async def until_idle(self) -> None:
        async def idle() -> bool:
            return await self.in_flight() == 0

        await until(idle)


@asynccontextmanager
async def scene(
    folder: Path, *, speed: float = 20.0, router: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Scene]:
    # Nothing here ends because the window is over, unless a test says so.
    patient = {"session_resume_window": 600.0, **(router or {})}
    async with cluster(folder, engines=({"sim_speed": speed},), router=patient) as running:
        secret = await running.new_client("shop", "generate")
        token = await running.token("shop", secret)
        assert running.router is not None
        async with (
            cuttable(running.router.address) as network,
            AsyncClient(network.address, token=token, **options) as client,
        ):
            yield Scene(running, network, client, secret)


async def begun(stream: AnswerStream) -> list[int]:
    """Reads until the first tokens have come."""
    async for chunk in stream:
        if chunk.token_ids:
            return list(chunk.token_ids)
    raise AssertionError("it ended without any")


async def until_detached(s: Scene, count: int = 1) -> None:
    async def detached() -> bool:
        return s.sessions.detached == count

    await until(detached)


async def test_an_answer_goes_on_after_a_cut_as_if_there_had_been_none(tmp_path):
    async with scene(tmp_path, speed=4.0) as s:
        truth = await s.truth("story", 300)
        s.slow(20.0)
        async with s.ask("story", 300) as stream:
            seen = await begun(stream)
            assert s.network.cut() == 1
            s.slow(1.0)
            async for chunk in stream:
                seen += chunk.token_ids
            assert seen == truth
            assert stream.finish_reason is FinishReason.LENGTH
            assert stream.usage is not None
            assert stream.usage.completion_tokens == 300
        assert s.sessions.resumed == 1


@pytest.mark.slow
async def test_answers_across_cuts_at_random_places_are_exact(tmp_path, caplog):
    async with scene(tmp_path, speed=20.0) as s:
        truths: dict[int, list[int]] = {
            tokens: await s.truth(f"question {tokens}", tokens) for tokens in (1, 30, 100)
        }

        async def example(sizes: list[int], cuts: list[int]) -> None:
            asked = [
                asyncio.create_task(s.answer(f"question {tokens}", tokens)) for tokens in sizes
            ]
            for size in cuts:
                # Somewhere in a message, a header, or a frame of HTTP/2; or never.
                s.network.cut_after(size)
                done, _ = await asyncio.wait(asked, timeout=0.03)
                if len(done) == len(asked):
                    break
            for tokens, answer in zip(sizes, await asyncio.gather(*asked), strict=True):
                (choice,) = answer.choices
                assert list(choice.token_ids) == truths[tokens]
                assert choice.finish_reason is FinishReason.LENGTH
                assert answer.usage.completion_tokens == tokens

        loop = asyncio.get_running_loop()

        @settings(
            max_examples=25,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(
            st.lists(st.sampled_from(sorted(truths)), min_size=1, max_size=5),
            st.lists(st.integers(1, 4000), min_size=1, max_size=3),
        )
        def run(sizes: list[int], cuts: list[int]) -> None:
            asyncio.run_coroutine_threadsafe(example(sizes, cuts), loop).result(BOUND_S)

        await asyncio.to_thread(run)
        await s.until_idle()

        assert s.sessions.resumed > 0
        assert not s.sessions.lost
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.slow
async def test_a_connection_that_stalls_is_noticed_and_replaced(tmp_path):
    quick = (("grpc.keepalive_time_ms", 1_000), ("grpc.keepalive_timeout_ms", 500),
             ("grpc.http2.ping_timeout_ms", 500))  # fmt: skip
    async with scene(tmp_path, speed=4.0, channel_options=quick) as s:
        truth = await s.truth("story", 400)
        s.slow(20.0)
        async with s.ask("story", 400) as stream:
            seen = await begun(stream)
            s.network.stall()
            s.network.forget_stalled()
            s.slow(1.0)
            # The router may still believe in the first connection when the second one comes.
            async for chunk in stream:
                seen += chunk.token_ids
        assert seen == truth
        # On a busy machine a connection that is only slow may be replaced, too.
        assert s.sessions.resumed >= 1


async def test_a_cut_before_the_session_is_ready_costs_nothing(tmp_path):
    async with scene(tmp_path) as s:
        truth = await s.truth("story", 50)
        s.network.close()
        asked = asyncio.create_task(s.answer("story", 50))

        async def tried() -> bool:
            return s.network.refused > 0

        await until(tried)
        s.network.restore()
        assert list((await asked).choices[0].token_ids) == truth


async def test_starts_that_were_lost_on_their_way_are_sent_again_once(tmp_path):
    async with scene(tmp_path, speed=4.0) as s:
        truth = await s.truth("story", 60)
        s.slow(20.0)
        async with s.ask("long", 400) as first:
            await begun(first)
            # From here on nothing arrives, in either direction; nobody knows yet.
            s.network.stall()
            asked = [asyncio.create_task(s.answer("story", 60)) for _ in range(3)]

            async def swallowed() -> bool:
                return s.network.swallowed > 0

            await until(swallowed)
            s.network.cut()
            s.network.restore()
            s.slow(1.0)
            for answer in await asyncio.gather(*asked):
                assert list(answer.choices[0].token_ids) == truth
            await first.finish()
        assert s.sessions.resumed == 1


async def test_what_is_given_up_during_an_outage_is_cancelled_when_it_ends(tmp_path):
    async with scene(tmp_path, speed=0.5) as s, s.ask("kept", 10_000) as kept:
        seen = await begun(kept)
        async with s.ask("given up", 10_000) as stream:
            await begun(stream)
            s.network.close()
            await until_detached(s)
        s.network.restore()

        async def only_one() -> bool:
            return await s.in_flight() == 1

        await until(only_one)
        async for chunk in kept:
            assert chunk.first_token == len(seen)
            seen += chunk.token_ids
            if len(seen) > 100:
                break


async def test_after_the_window_each_request_fails_once_and_the_backend_is_free(tmp_path):
    async with scene(tmp_path, speed=0.5, router={"session_resume_window": 0.5}) as s:
        async with s.ask("one", 10_000) as one, s.ask("two", 10_000) as two:
            await begun(one)
            await begun(two)
            s.network.close()
            for stream in (one, two):
                with pytest.raises(SessionLostError, match=r"come back within 0\.5 s") as c:
                    await stream.finish()
                assert c.value.work is Work.OUTPUT_SEEN
                assert c.value.tokens_delivered > 0
                assert c.value.partial is not None
        await s.until_idle()
        assert s.sessions.lost["expired"] == 1
        s.network.restore()
        assert (await s.answer("three", 5)).usage.completion_tokens == 5


async def test_a_router_that_started_anew_says_that_the_session_is_lost(tmp_path):
    async with scene(tmp_path, speed=0.5) as s:
        async with s.ask("one", 10_000) as one:
            await begun(one)
            s.network.close()
            await until_detached(s)
            for state in s.sessions:
                s.sessions.remove(state)  # what a restart leaves of it
            s.network.restore()
            with pytest.raises(SessionLostError, match="no such session to resume"):
                await one.finish()
        await s.until_idle()


async def test_a_client_that_is_told_not_to_resume_fails_at_once(tmp_path):
    async with scene(tmp_path, speed=0.5, resume=False) as s:
        async with s.ask("one", 10_000) as one:
            await begun(one)
            s.network.cut()
            with pytest.raises(BackendLostError) as caught:
                await one.finish()
            assert not isinstance(caught.value, SessionLostError)
        await s.until_idle()
        assert s.sessions.detached == 0


async def test_a_router_without_a_window_is_met_as_before(tmp_path):
    async with scene(tmp_path, speed=0.5, router={"session_resume_window": 0.0}) as s:
        async with s.ask("one", 10_000) as one:
            await begun(one)
            s.network.cut()
            with pytest.raises(UnavailableError):
                await one.finish()
        await s.until_idle()


@pytest.mark.slow
async def test_a_credential_revoked_meanwhile_is_replaced_before_the_session_goes_on(tmp_path):
    async with (
        scene(tmp_path, speed=0.5) as s,
        s.cluster.channel(s.cluster.auth) as auth,
        AsyncClient(
            s.network.address,
            auth_target=s.cluster.auth.address,
            client_id="shop",
            client_secret=s.secret,
        ) as client,
        client.stream(model=MODEL, prompt="story", max_tokens=10_000, ignore_eos=True) as stream,
    ):
        seen = await begun(stream)
        revoked = (await client._tokens.authorization()).removeprefix("Bearer ")
        await auth_pb2_grpc.AuthServiceStub(auth).RevokeToken(
            auth_pb2.RevokeTokenRequest(token=revoked), metadata=bearer(revoked)
        )
        assert s.cluster.router is not None
        async with s.cluster.channel(s.cluster.router) as channel:

            async def refused() -> bool:
                try:
                    await model_stub(channel).ListModels(
                        model_pb2.ListModelsRequest(), metadata=bearer(revoked)
                    )
                except grpc.aio.AioRpcError as error:
                    return error.code() is grpc.StatusCode.UNAUTHENTICATED
                return False

            await until(refused)
        s.network.cut()

        async def back() -> bool:
            return s.sessions.resumed == 1

        await until(back)
        async for chunk in stream:
            assert chunk.first_token == len(seen)
            seen += chunk.token_ids
            if len(seen) > 250:
                break


async def test_closing_the_client_frees_the_backend_at_once(tmp_path):
    async with scene(tmp_path, speed=0.5) as s:
        stream = s.ask("one", 10_000)
        await stream.__aenter__()
        await begun(stream)
        await s.client.close()
        await s.until_idle()
        assert s.sessions.detached == 0
        assert not s.sessions.lost
