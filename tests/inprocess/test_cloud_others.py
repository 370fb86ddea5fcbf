"""What the cloud proxy answers besides text: vectors and token counts."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from aiohttp import web

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from services.chassis.errors import fault_from_rpc_error, reason_name
from tests.support.cloud import Proxy, ask, cloud_proxy
from tests.support.provider import KEY

ROUTES = {
    "vectors": {"provider": "openai", "model": "own-embedding", "capabilities": ["embed"],
                "prices": {"input": 20000, "cached_input": 20000, "output": 0,
                           "source": "this test", "as_of": "2026-01-01"}},
    "counted": {"provider": "moonshot", "model": "kimi", "context_length": 1000},
}  # fmt: skip


class Provider:
    """A server of the two endpoints, which notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, object]] = []
        self.status = 200

    async def embed(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append(body)
        if self.status != 200:
            return web.json_response({"error": {"message": "no"}}, status=self.status)
        entries = [
            {"index": n, "embedding": [float(len(text)), float(n)]}
            for n, text in enumerate(body["input"])
        ]
        # Out of order on purpose: the index says whose vector it is.
        usage = {"prompt_tokens": 50, "total_tokens": 50}
        return web.json_response({"data": entries[::-1], "usage": usage})

    async def count(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        if self.status != 200:
            return web.json_response({"error": {"message": "no"}}, status=self.status)
        return web.json_response({"data": {"total_tokens": 77}})


@pytest.fixture
async def there() -> AsyncIterator[tuple[Provider, str]]:
    provider = Provider()
    app = web.Application()
    app.router.add_post("/v1/embeddings", provider.embed)
    app.router.add_post("/v1/tokenizers/estimate-token-count", provider.count)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield provider, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def proxy(tmp_path, there) -> AsyncIterator[Proxy]:
    keys = f"simulator={KEY} openai={KEY} moonshot={KEY}"
    async with cloud_proxy(
        tmp_path, url=there[1], routes=ROUTES, keys=keys, attempts=1, warm=False
    ) as found:
        yield found


async def embed(proxy: Proxy, *texts: str, model: str = "vectors") -> model_pb2.EmbedResponse:
    request = model_pb2.EmbedRequest(model=model, inputs=texts)
    answer: model_pb2.EmbedResponse = await proxy.stub.Embed(
        request, metadata=proxy.metadata, timeout=60
    )
    return answer


async def test_vectors_come_in_the_order_of_their_inputs_with_usage(proxy, there):
    answer = await embed(proxy, "a", "bcd")
    assert [list(e.values) for e in answer.embeddings] == [[1.0, 0.0], [3.0, 1.0]]
    assert answer.usage == pb.Usage(prompt_tokens=50, source=pb.Usage.SOURCE_PROVIDER)
    (body,) = there[0].asked
    assert body == {"model": "own-embedding", "input": ["a", "bcd"], "encoding_format": "float"}
    # 50 tokens at 0.02 micro-USD.
    assert await proxy.metric("anabranch_cloud_cost_total") == [1.0]


async def test_inputs_are_masked_before_they_leave(proxy, there):
    await embed(proxy, "write to ann@example.org", "nothing here")
    (body,) = there[0].asked
    assert "ann@example.org" not in str(body)
    assert body["input"][1] == "nothing here"


async def test_model_that_does_not_embed_is_refused_and_so_is_text_from_one_that_only_does(proxy):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await embed(proxy, "a", model="cloud-chat")
    assert reason_name(fault_from_rpc_error(caught.value).reason) == "UNSUPPORTED"
    _, ended = await proxy.chunks(ask(model="vectors"))
    assert reason_name(ended.reason) == "UNSUPPORTED"
    listed = await proxy.stub.ListModels(model_pb2.ListModelsRequest(), metadata=proxy.metadata)
    capabilities = {m.name: list(m.capabilities) for m in listed.models}
    assert capabilities["vectors"] == [pb.CAPABILITY_EMBED]


async def test_failure_to_embed_is_told(proxy, there):
    there[0].status = 503
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await embed(proxy, "a")
    fault = fault_from_rpc_error(caught.value)
    assert (reason_name(fault.reason), fault.metadata["http_status"]) == ("PROVIDER_ERROR", "503")


def count(model: str, **fields: object) -> model_pb2.CountTokensRequest:
    return model_pb2.CountTokensRequest(model=model, request=ask("how long is this?", model=model))


async def test_count_is_the_providers_own_where_it_counts(proxy, there):
    answer = await proxy.stub.CountTokens(count("counted"), metadata=proxy.metadata, timeout=60)
    assert (answer.prompt_tokens, answer.source) == (77, pb.Usage.SOURCE_PROVIDER)
    assert answer.context_length == 1000
    (body,) = there[0].asked
    assert body["messages"] == [{"role": "user", "content": "how long is this?"}]


async def test_count_is_an_estimate_where_the_provider_fails_or_does_not_count(proxy, there):
    there[0].status = 503
    answer = await proxy.stub.CountTokens(count("counted"), metadata=proxy.metadata, timeout=60)
    assert answer.source == pb.Usage.SOURCE_ESTIMATED
    other = await proxy.stub.CountTokens(count("cloud-chat"), metadata=proxy.metadata, timeout=60)
    assert other.source == pb.Usage.SOURCE_ESTIMATED
    assert other.prompt_tokens == answer.prompt_tokens > 0
