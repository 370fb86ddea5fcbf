"""The router's cache between real callers and real backends: what repeats is not asked again."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from anabranch.v1 import errors_pb2, model_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.encryption.ciphers import CipherName
from services.chassis.encryption.keychain_document import new_keychain_text
from services.chassis.settings import Secret, SettingsError
from services.router import app
from services.router.core.policy import Objective, Policy, TenantRules, Variant
from services.router.settings import Settings
from tests.support import scripted_backends
from tests.support.auth import bearer
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub
from tests.support.provider import KEY, routes_file, simulator
from tests.support.redis import binary, redis_server
from tests.support.scripted_backends import CALLER, Frame, text_chunk
from tests.support.waiting import BOUND_S, until

POLICY = Policy(objective=Objective(ttft=1.0), tenants={"*": TenantRules(cache=True)})
DOCUMENT = """
version: 1
tenants: {"*": {cache: true}, careful: {cache: false}}
"""
GREEDY = pb.Sampling(max_tokens=8, ignore_eos=True, temperature=0)
IN_FLIGHT = pb.CACHE_SOURCE_IN_FLIGHT
MEMORY = pb.CACHE_SOURCE_MEMORY
STOP = pb.FINISH_REASON_STOP


def needs_redis(test):
    missing = pytest.mark.skipif(binary() is None, reason="no Redis server installed")
    return pytest.mark.cluster(missing(test))


def ask(text: str = "hello", residency: pb.Residency = 0, **fields) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        **{
            "model": MODEL,
            "messages": [pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=text)])],
            "sampling": GREEDY,
            "routing": pb.Routing(residency=residency),
            **fields,
        }
    )


def kept(folder: Path, **more) -> dict:
    """The settings of a router that keeps answers."""
    path = folder / "policy.yaml"
    path.write_text(DOCUMENT)
    return {"policy": f"file:{path}", "ttft_slo": 1.0, **more}


class Tenant:
    """A caller of one tenant, through one router."""

    def __init__(self, stub, auth) -> None:
        self.stub = stub
        self.auth = auth

    async def answer(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        return await self.stub.Generate(request, metadata=self.auth, timeout=30)


@asynccontextmanager
async def caller(running: Cluster, router=None, tenant: str = "shop"):
    secret = await running.new_client(f"{tenant}-{id(router)}", "generate", tenant=tenant)
    token = await running.token(f"{tenant}-{id(router)}", secret)
    async with running.channel(router or running.router) as channel:
        yield Tenant(model_stub(channel), bearer(token))


async def metric(router, name: str) -> float:
    """The sum of a counter's series."""
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://{router.http_address}/metrics") as response,
    ):
        lines = (await response.text()).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


async def stored(router, count: int) -> None:
    async def so() -> bool:
        return await metric(router, "anabranch_router_cache_stored") >= count

    await until(so)


# Through a real cluster


async def test_a_repeated_request_is_answered_though_every_backend_is_gone(tmp_path):
    async with cluster(tmp_path, router=kept(tmp_path)) as running, caller(running) as c:
        first = await c.answer(ask(request_id="one"))
        assert first.receipt.tier == pb.TIER_LOCAL
        assert not first.receipt.cache
        await running.engines[0].stop()

        again = await c.answer(ask(request_id="two", labels={"project": "x"}))
        assert again.choices == first.choices
        assert again.usage == first.usage
        assert again.request_id == "two"
        assert again.receipt.cache == MEMORY
        assert again.receipt.backend_id == first.receipt.backend_id
        assert not again.receipt.attempts

        streamed = c.stub.StreamGenerate(ask(request_id="three"), metadata=c.auth)
        chunks = [chunk async for chunk in streamed]
        assert "".join(chunk.text for chunk in chunks) == first.choices[0].text
        assert chunks[-1].receipt.cache == MEMORY

        session = c.stub.Session(metadata=c.auth)
        await session.write(
            session_pb2.SessionRequest(
                frames=[
                    session_pb2.SessionRequestFrame(stream=1, start=ask(request_id="four")),
                    session_pb2.SessionRequestFrame(stream=2, start=ask(request_id="five")),
                ]
            )
        )
        frames = []
        while len(frames) < 2:
            frames += (await session.read()).frames
        assert {frame.stream for frame in frames} == {1, 2}
        assert all(frame.last and frame.chunk.receipt.cache == MEMORY for frame in frames)
        await session.done_writing()
        session.cancel()
        assert await metric(running.router, "anabranch_router_cache_hits") == 4
        assert await metric(running.router, "anabranch_router_cache_misses") == 1
        assert await metric(running.router, "anabranch_router_cache_bytes") > 0


async def test_only_greedy_requests_of_tenants_that_allow_it_are_kept(tmp_path):
    async with (
        cluster(tmp_path, router=kept(tmp_path)) as running,
        caller(running) as shop,
        caller(running, tenant="careful") as careful,
        caller(running, tenant="bank") as bank,
    ):
        for _ in range(2):
            assert not (await careful.answer(ask())).receipt.cache
            sampled = pb.Sampling(max_tokens=8, ignore_eos=True, temperature=1)
            assert not (await shop.answer(ask(sampling=sampled))).receipt.cache
        assert not (await shop.answer(ask())).receipt.cache
        assert not (await bank.answer(ask())).receipt.cache, "tenants never share"
        assert (await shop.answer(ask())).receipt.cache == MEMORY
        assert (await bank.answer(ask())).receipt.cache == MEMORY


async def test_a_private_request_never_gets_a_cloud_answer_nor_the_reverse(tmp_path):
    async with (
        simulator(KEY) as provider,
        cluster(tmp_path, engines=({"max_num_seqs": 1},), router=kept(tmp_path)) as running,
        caller(running) as c,
    ):
        models = routes_file(
            tmp_path, provider.url, **{MODEL: {"provider": "simulator", "model": "sim-chat"}}
        )
        await running.add_cloud(models, api_keys=Secret(f"simulator={KEY}"))
        await running.backends_ready(2)
        request = {"sampling": pb.Sampling(max_tokens=5, temperature=0)}

        filler = c.stub.StreamGenerate(
            ask("long", sampling=pb.Sampling(max_tokens=5000, ignore_eos=True)), metadata=c.auth
        )
        await filler.read()
        in_cloud = await c.answer(ask(**request))
        assert in_cloud.receipt.tier == pb.TIER_CLOUD
        private = c.stub.Generate(
            ask(residency=pb.RESIDENCY_LOCAL_ONLY, **request), metadata=c.auth
        )
        # Its line is the local engine's: the answer from the cloud, which is there, is not for it.
        assert (await c.answer(ask(**request))).receipt.cache == MEMORY
        assert not private.done()
        filler.cancel()
        at_home = await private
        assert at_home.receipt.tier == pb.TIER_LOCAL
        assert not at_home.receipt.cache
        assert at_home.choices[0].text != in_cloud.choices[0].text

        only_cloud = await c.answer(ask(residency=pb.RESIDENCY_CLOUD_ONLY, **request))
        assert only_cloud.receipt.tier == pb.TIER_CLOUD
        assert not only_cloud.receipt.cache
        again = await c.answer(ask(residency=pb.RESIDENCY_LOCAL_ONLY, **request))
        assert (again.receipt.tier, again.receipt.cache) == (pb.TIER_LOCAL, MEMORY)


@pytest.mark.parametrize("cipher", [None, *CipherName])
async def test_a_restart_with_a_disk_forgets_nothing(tmp_path, cipher):
    settings = kept(tmp_path, cache_dir=tmp_path / "answers")
    if cipher is not None:
        keys = tmp_path / "keys.json"
        keys.write_text(new_keychain_text(None, "2026-11"))
        settings |= {"encryption_keys_file": keys}
    async with cluster(tmp_path, router=kept(tmp_path)) as running:
        if cipher is not None:
            await running.set_tenant("shop", cipher=f"CIPHER_{cipher}")
        async with running.one_more_router(**settings) as router, caller(running, router) as c:
            await ready(c)
            first = await c.answer(ask())
        text = first.choices[0].text.encode()
        written = b"".join(path.read_bytes() for path in (tmp_path / "answers").iterdir())
        assert len(text) > 10
        assert (text in written) == (cipher is None)
        async with running.one_more_router(**settings) as router, caller(running, router) as c:
            again = await c.answer(ask())
            assert again.receipt.cache == pb.CACHE_SOURCE_DISK
            assert again.choices == first.choices
            assert (await c.answer(ask())).receipt.cache == MEMORY


def with_identity(**more) -> Settings:
    return Settings(client_id="router", client_secret=Secret("s"), registry="none", **more)


async def test_keys_that_cannot_be_used_are_bad_settings(tmp_path):
    async def refused(settings: Settings) -> list[str]:
        with pytest.raises(SettingsError) as caught:
            async with app.running(settings):
                pass
        return caught.value.problems

    keys = tmp_path / "keys.json"
    (missing,) = await refused(with_identity(encryption_keys_file=keys))
    assert missing.startswith(f"ANABRANCH_ROUTER_ENCRYPTION_KEYS_FILE: {keys}: cannot be read")


async def ready(c: Tenant) -> None:
    """Waits until the caller's router has a backend."""

    async def found() -> bool:
        listed = await c.stub.ListModels(model_pb2.ListModelsRequest(), metadata=c.auth)
        return bool(listed.models)

    await until(found)


@needs_redis
async def test_routers_share_answers_through_redis_and_go_on_without_it(tmp_path):
    with redis_server() as redis:
        settings = kept(tmp_path, redis_url=redis.url)
        async with (
            cluster(tmp_path, router=settings) as running,
            running.one_more_router(**settings) as other,
            caller(running) as here,
            caller(running, other) as there,
        ):
            await ready(there)
            first = await here.answer(ask())

            async def in_redis() -> bool:
                with redis.client() as own:
                    return bool(own.keys("anabranch:answer:*"))

            await until(in_redis)
            again = await there.answer(ask())
            assert again.receipt.cache == pb.CACHE_SOURCE_REDIS
            assert again.choices == first.choices

            with redis.frozen():
                # Some of them wait 20 ms for it. If all waited for its own limit, that were 100 s.
                async with asyncio.timeout(BOUND_S):
                    for number in range(100):
                        answer = await here.answer(ask(f"while it hangs {number}"))
                        assert not answer.receipt.cache
            redis.kill()
            for number in range(10):
                assert not (await there.answer(ask(f"without it {number}"))).receipt.cache
            assert (await there.answer(ask())).receipt.cache == MEMORY


@needs_redis
async def test_a_redis_that_returns_is_used_again(tmp_path):
    with redis_server() as first:
        settings = kept(tmp_path, redis_url=first.url)
        async with cluster(tmp_path, router=settings) as running, caller(running) as c:
            first.kill()
            for number in range(4):
                await c.answer(ask(f"without it {number}"))
            with redis_server(port=first.port, password=first.password) as second:

                async def written() -> bool:
                    await c.answer(ask(f"with it {written.asked}"))
                    written.asked += 1
                    with second.client() as own:
                        return bool(own.keys("anabranch:answer:*"))

                written.asked = 0
                await until(written)


# Through scripted backends


@asynccontextmanager
async def one_backend():
    async with scripted_backends.scene(policy=POLICY) as s:
        backend = await s.backend("a")
        s.list(backend)
        await s.ready(backend)
        yield s, backend


GREEDY_SAMPLING = pb.Sampling(temperature=0)


def greedy(s, name: str, **fields):
    return s.ask(**{"request_id": name, "sampling": GREEDY_SAMPLING, **fields})


async def test_identical_requests_at_once_reach_the_backend_once():
    async with one_backend() as (s, backend):
        answers = [greedy(s, f"r{n}") for n in range(10)]
        number, sent = await backend.next_start()
        await backend.send(text_chunk(number, 0, "one", 1, request_id=sent.request_id))
        await answers[0].has_chunks(1)
        late = greedy(s, "late")
        assert late.chunks[0].text == "one"
        await backend.send(text_chunk(number, 1, " two", 2, finish_reason=STOP))
        for n, answer in enumerate(answers):
            last = await answer.last()
            assert "".join(chunk.text for chunk in answer.chunks) == "one two"
            assert last.receipt.cache == (IN_FLIGHT if n else 0)
            assert answer.chunks[0].request_id == f"r{n}"
        await late.last()
        # Nothing else was sent: the next start is that of another request.
        greedy(s, "other", prompt="other")
        _, sent = await backend.next_start()
        assert sent.prompt == "other"


async def test_a_caller_who_leaves_takes_the_request_from_nobody():
    async with one_backend() as (s, backend):
        first, second = greedy(s, "first"), greedy(s, "second")
        number, _ = await backend.next_start()
        await backend.send(text_chunk(number, 0, "one", 1))
        await second.has_chunks(1)
        first.cancel()
        assert (await first.last()).finish_reason == pb.FINISH_REASON_CANCELLED
        await backend.send(text_chunk(number, 1, " two", 2, finish_reason=STOP))
        last = await second.last()
        assert [a.backend_id for a in last.receipt.attempts] == ["a"]
        assert backend.cancelled == []


async def test_the_backend_stops_once_every_caller_has_left():
    async with one_backend() as (s, backend):
        first, second = greedy(s, "first"), greedy(s, "second")
        number, _ = await backend.next_start()
        await backend.send(text_chunk(number, 0, "one", 1))
        await second.has_chunks(1)
        second.cancel()
        first.cancel()

        async def told() -> bool:
            return backend.cancelled == [number]

        await until(told)


async def test_an_answer_that_moves_to_another_backend_is_shared_to_its_end_and_not_kept():
    async with one_backend() as (s, a):
        first, second = greedy(s, "first"), greedy(s, "second")
        number, _ = await a.next_start()
        await a.send(text_chunk(number, 0, "one", 1))
        await second.has_chunks(1)
        b = await s.backend("b")
        s.list(a, b)
        await s.ready(a, b)
        await a.crash()
        number, sent = await b.next_start()
        assert list(sent.continuation.token_ids) == [1]
        again = text_chunk(number, 1, " two", 2, request_id=sent.request_id)
        await b.send(again, text_chunk(number, 2, "", finish_reason=STOP))
        for name, answer in (("first", first), ("second", second)):
            await answer.last()
            assert "".join(chunk.text for chunk in answer.chunks) == "one two"
            assert {chunk.request_id for chunk in answer.chunks} <= {"", name}
        greedy(s, "third")
        _, sent = await b.next_start()
        assert sent.request_id == "third"


async def test_an_operator_cancels_one_of_those_who_share():
    async with one_backend() as (s, backend):
        first, second = greedy(s, "first"), greedy(s, "second")
        number, _ = await backend.next_start()
        assert s.handler.cancel_request("first")
        assert (await first.last()).finish_reason == pb.FINISH_REASON_CANCELLED
        # Not even by the id that the request still has at the backend.
        assert not s.handler.cancel_request("first")
        await backend.send(text_chunk(number, 0, "one", 1, finish_reason=STOP))
        assert (await second.last()).text == "one"


async def test_a_lost_backend_before_output_fails_nobody_while_there_is_another():
    async with one_backend() as (s, a):
        answers = [greedy(s, f"r{n}") for n in range(3)]
        await a.next_start()
        b = await s.backend("b")
        s.list(a, b)
        await s.ready(a, b)
        await a.crash()
        number, _ = await b.next_start()
        await b.send(text_chunk(number, 0, "one", 1, finish_reason=STOP))
        for answer in answers:
            assert (await answer.last()).text == "one"


async def test_an_alias_is_resolved_once_and_each_variant_has_answers_of_its_own():
    variants = (Variant("river", 1.0), Variant("sea", 1.0))
    async with scripted_backends.scene(policy=replace(POLICY, aliases={"water": variants})) as s:
        backend = await s.backend("a", models=("river", "sea"))
        s.list(backend)
        await s.ready(backend)
        sent, hits = [], 0
        for number in range(40):
            answer = greedy(s, f"r{number}", model="water")
            if not answer.ends:
                stream, request = await backend.next_start()
                sent.append(request.model)
                await backend.send(text_chunk(stream, 0, request.model, 1, finish_reason=STOP))
            last = await answer.last()
            hits += last.receipt.cache == MEMORY
            assert last.receipt.resolved_model == last.text
        assert sorted(sent) == ["river", "sea"]
        assert hits == 38


async def test_other_tenants_are_sent_by_themselves():
    async with one_backend() as (s, backend):
        greedy(s, "ours")
        greedy(s, "theirs", caller=replace(CALLER, tenant="bank"))
        starts = [(await backend.next_start())[1].request_id for _ in range(2)]
        assert starts == ["ours", "theirs"]


async def test_a_request_that_names_a_backend_is_always_sent():
    async with one_backend() as (s, backend):
        for name in ("first", "second"):
            answer = greedy(s, name, routing=pb.Routing(backend_id="a"))
            number, _ = await backend.next_start()
            await backend.send(text_chunk(number, 0, "one", 1, finish_reason=STOP))
            assert not (await answer.last()).receipt.cache


async def test_an_answer_without_a_finish_reason_is_neither_whole_nor_kept():
    async with one_backend() as (s, backend):
        first, second = greedy(s, "first"), greedy(s, "second")
        number, _ = await backend.next_start()
        cut = pb.GenerateChunk(text=" off", first_token=1).SerializeToString()
        await backend.send(
            text_chunk(number, 0, "cut", 1), Frame(stream=number, chunk=cut, last=True, tokens=1)
        )
        for answer in (first, second):
            assert (await answer.fault()).reason == errors_pb2.ERROR_REASON_BACKEND_LOST
        greedy(s, "third")
        assert (await backend.next_start())[1].request_id == "third"
