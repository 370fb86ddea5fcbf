"""The proxy in front of a server that speaks Gemini's format, over real HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import reason_name
from tests.support.cloud import Proxy, ask, cloud_proxy
from tests.support.provider import KEY
from tests.support.recordings import RECORDINGS

SECRET = "AIza-of-a-test"
BUSY = {
    "error": {
        "code": 429,
        "message": "You exceeded your current quota.",
        "status": "RESOURCE_EXHAUSTED",
        "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "26s"}],
    }
}


@asynccontextmanager
async def provider(answer) -> AsyncIterator[str]:
    """A server on a free port that answers every request with `answer(request)`."""
    application = web.Application()
    application.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def proxied(tmp_path, answer) -> AsyncIterator[Proxy]:
    async with provider(answer) as url:
        routes = {"flash": {"provider": "gemini", "model": "gemini-3.8-flash", "base_url": url}}
        keys = f"simulator={KEY},gemini={SECRET}"
        async with cloud_proxy(tmp_path, keys=keys, routes=routes) as proxy:
            yield proxy


async def test_a_stream_is_heard_whole_and_its_state_goes_back(tmp_path):
    seen = []

    async def answer(request):
        seen.append((request.path_qs, request.headers.get("x-goog-api-key"), await request.json()))
        data = (RECORDINGS / "gemini" / "thoughts_then_call.sse").read_bytes()
        return web.Response(body=data, content_type="text/event-stream")

    async with proxied(tmp_path, answer) as proxy:
        tools = [pb.Tool(name="weather")]
        got = await proxy.answer(ask("weather?", model="flash", tools=tools))
        (choice,) = got.choices
        assert choice.text == "Let me look."
        assert choice.reasoning.startswith("**Weather**")
        assert choice.finish_reason == pb.FINISH_REASON_TOOL_CALLS
        assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (60, 50)
        assert got.usage.source == pb.Usage.SOURCE_PROVIDER
        again = ask("weather?", model="flash", tools=tools)
        again.messages.add(
            role=pb.ROLE_ASSISTANT,
            content=[pb.ContentPart(text=choice.text)],
            tool_calls=choice.tool_calls,
            reasoning_state=choice.reasoning_state,
        )
        again.messages.add(
            role=pb.ROLE_TOOL,
            tool_call_id=choice.tool_calls[0].id,
            content=[pb.ContentPart(text="rain")],
        )
        await proxy.answer(again)
    path, key, body = seen[1]
    assert path == "/v1beta/models/gemini-3.8-flash:streamGenerateContent?alt=sse"
    assert key == SECRET
    _, model, user = body["contents"]
    signed = [part for part in model["parts"] if "thoughtSignature" in part]
    assert [part["functionCall"]["id"] for part in signed] == ["fc_8s1d"]
    assert user["parts"][0]["functionResponse"]["name"] == "weather"


async def test_delay_in_the_body_of_a_refusal_reaches_the_caller(tmp_path):
    async def answer(_request):
        return web.json_response(BUSY, status=429)

    async with proxied(tmp_path, answer) as proxy:
        _, ended = await proxy.chunks(ask(model="flash"))
    assert ended is not None
    assert ended.code.name == "RESOURCE_EXHAUSTED"
    assert ended.retry_after == 26.0


async def test_delay_in_the_headers_goes_before_the_one_in_the_body(tmp_path):
    async def answer(_request):
        return web.json_response(BUSY, status=429, headers={"Retry-After": "7"})

    async with proxied(tmp_path, answer) as proxy:
        _, ended = await proxy.chunks(ask(model="flash"))
    assert ended is not None
    assert ended.retry_after == 7.0


async def test_a_refused_key_is_not_the_callers_fault_though_the_status_is_400(tmp_path):
    async def answer(_request):
        error = {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}
        return web.json_response([{"error": error}], status=400)

    async with proxied(tmp_path, answer) as proxy:
        _, ended = await proxy.chunks(ask(model="flash"))
    assert ended is not None
    assert reason_name(ended.reason) == "PROVIDER_ERROR"
    assert "credential" in ended.message
