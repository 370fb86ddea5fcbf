"""What /metrics shows of a running cluster: backends that come and go, logins, both formats."""

from __future__ import annotations

from collections.abc import Callable

import aiohttp
import grpc
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from anabranch.v1 import auth_pb2, auth_pb2_grpc
from anabranch.v1 import generation_pb2 as pb
from services.chassis.host import Host
from tests.support.auth import bearer, until
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub
from tests.support.waiting import BOUND_S

TRACE = "0af7651916cd43dd8448eb211c80319c"
Labels = dict[str, str]


async def scraped(host: Host, accept: str = "") -> tuple[str, str]:
    headers = {"Accept": accept} if accept else {}
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://{host.http_address}/metrics", headers=headers) as response,
    ):
        return response.headers["Content-Type"], await response.text()


async def series(host: Host, name: str) -> list[tuple[Labels, float]]:
    _, text = await scraped(host)
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]


async def ask(s: Cluster, model: str = MODEL, **metadata: str) -> None:
    assert s.router is not None
    request = pb.GenerateRequest(model=model, prompt="story")
    request.sampling.max_tokens = 3
    async with s.channel(s.router) as channel:
        await model_stub(channel).Generate(
            request, metadata=[*bearer(await s.token()), *metadata.items()], timeout=BOUND_S
        )


async def test_a_backend_has_its_series_for_as_long_as_it_is_known(tmp_path):
    async with cluster(tmp_path, engines=({}, {})) as s:
        router = s.router
        assert router is not None
        names = [
            f"anabranch_router_backend_{what}"
            for what in (
                *("ready", "in_flight", "breaker_open", "waiting"),
                *("kv_used_ratio", "step_time_ratio"),
            )
        ]
        ids = {engine.host.instance_id for engine in s.engines}
        for name in names:
            found = await series(router, name)
            assert {labels["backend"] for labels, _ in found} == ids
            assert {labels["anabranch_tier"] for labels, _ in found} == {"local"}
        assert [value for _, value in await series(router, names[0])] == [1.0, 1.0]
        states = await series(router, "anabranch_router_backends")
        assert len(states) == 8
        assert [labels for labels, value in states if value] == [
            {"anabranch_tier": "local", "state": "ready"}
        ]
        left = s.engines[0].host.instance_id
        await s.engines[0].stop()

        async def gone() -> bool:
            return left not in (await scraped(router))[1]

        await until(gone)
        assert len(await series(router, names[0])) == 1
        assert len(await series(router, "anabranch_router_backends")) == 8


async def test_an_engine_says_how_busy_it_is(tmp_path):
    async with cluster(tmp_path) as s:
        engine = s.engines[0]
        assert await series(engine.host, "anabranch_engine_kv_total_tokens") == [({}, 131072.0)]
        assert await series(engine.host, "anabranch_engine_running") == [({}, 0.0)]
        engine.simulation.slowdown = 100.0
        request = pb.GenerateRequest(model=MODEL, prompt="story")
        request.sampling.max_tokens = 1000
        async with s.channel(s.router) as channel:
            call = model_stub(channel).StreamGenerate(
                request, metadata=bearer(await s.token()), timeout=BOUND_S
            )

            async def runs() -> bool:
                return await series(engine.host, "anabranch_engine_running") == [({}, 1.0)]

            await until(runs)
            assert (await series(engine.host, "anabranch_engine_kv_used_tokens"))[0][1] > 0
            found = await series(s.router, "anabranch_router_backend_in_flight")
            assert [value for _, value in found] == [1.0]
            call.cancel()

            async def counted() -> bool:
                found = await series(s.router, "anabranch_router_requests_total")
                return [(v, each["outcome"]) for each, v in found if v] == [(1.0, "cancelled")]

            await until(counted)


async def test_names_that_callers_make_up_make_no_series(tmp_path):
    async with cluster(tmp_path) as s:
        await ask(s)
        assert s.router is not None

        async def refused(count: int) -> None:
            token = bearer(await s.token())
            async with s.channel(s.router) as channel:
                stub = model_stub(channel)
                for number in range(count):
                    with pytest.raises(grpc.aio.AioRpcError):
                        await stub.Generate(
                            pb.GenerateRequest(model=f"made-up-{number}", prompt="p"),
                            metadata=token,
                            timeout=BOUND_S,
                        )

        def lines(text: str) -> set[str]:
            own = ("anabranch_", "gen_ai_", "rpc_")
            return {line.rpartition(" ")[0] for line in text.splitlines() if line.startswith(own)}

        await refused(1)
        before = lines((await scraped(s.router))[1])
        await refused(200)
        assert lines((await scraped(s.router))[1]) == before
        found = await series(s.router, "anabranch_router_requests_total")
        assert sum(v for each, v in found if each["gen_ai_request_model"] == "unknown") == 201.0


@pytest.mark.parametrize("of", ["router", "engine"])
async def test_only_openmetrics_shows_the_trace_behind_a_bucket(tmp_path, of):
    async with cluster(tmp_path) as s:
        await ask(s, traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
        await ask(s, traceparent=f"00-{'1' * 32}-b7ad6b7169203331-00")
        host = s.router if of == "router" else s.engines[0].host
        assert host is not None
        kind, text = await scraped(host)
        assert kind == "text/plain; version=0.0.4; charset=utf-8"
        assert TRACE not in text
        # As Prometheus asks.
        kind, text = await scraped(
            host,
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
            "text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
        )
    assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    traced = [
        (sample.name, sample.exemplar.labels)
        for family in openmetrics_families(text)
        for sample in family.samples
        if sample.exemplar
    ]
    assert traced == [("gen_ai_server_time_to_first_token_seconds_bucket", {"trace_id": TRACE})]


async def test_logins_are_counted_by_what_was_shown_and_how_it_ended(tmp_path):
    async with cluster(tmp_path, engines=()) as s, s.channel(s.auth) as channel:
        stub = auth_pb2_grpc.AuthServiceStub(channel)

        async def counts() -> dict[tuple[str, str], float]:
            found = await series(s.auth, "anabranch_auth_logins_total")
            return {(labels["grant"], labels["outcome"]): value for labels, value in found}

        before = await counts()
        assert set(before) == {
            (grant, outcome)
            for grant in ("client_secret", "api_key")
            for outcome in ("ok", "refused", "error")
        }
        await s.token()
        wrong: tuple[Callable[[], grpc.aio.UnaryUnaryCall], ...] = (
            lambda: stub.IssueToken(
                auth_pb2.IssueTokenRequest(client_id="admin", client_secret="guess")
            ),
            lambda: stub.ExchangeApiKey(auth_pb2.ExchangeApiKeyRequest(api_key="abk_guess")),
        )
        for call in wrong:
            with pytest.raises(grpc.aio.AioRpcError):
                await call()
        after = await counts()
    assert after[("client_secret", "ok")] == before[("client_secret", "ok")] + 1
    assert after[("client_secret", "refused")] == 1
    assert after[("api_key", "refused")] == 1
