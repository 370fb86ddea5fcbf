"""The provider simulator's faults as they look on the wire, in each dialect's own form."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime

import aiohttp
import pytest
from botocore.eventstream import ChecksumMismatch, EventStreamBuffer

from tests.support.provider import Provider, simulator
from tests.support.raw_requests import HEADERS, STREAMS, asking, begun, heard

DIALECTS = sorted(STREAMS)
MEDIA = {
    "ollama": "application/x-ndjson",
    "bedrock_converse": "application/vnd.amazon.eventstream",
}
# What the last event of a complete stream, and an event that states usage, has in it.
TERMINAL = {
    "openai_chat": b"data: [DONE]",
    "anthropic": b'"type": "message_stop"',
    "gemini": b'"finishReason": "STOP"',
    "ollama": b'"done": true',
    "bedrock_converse": b"messageStop",
}
FINISH = {
    "openai_chat": b'"finish_reason": "',
    "anthropic": b'"stop_reason": "',
    "gemini": b'"finishReason"',
    "ollama": b'"done_reason"',
    "bedrock_converse": b'"stopReason"',
}
USAGE = {
    "openai_chat": b'"usage": {"prompt_tokens"',
    "anthropic": b'"output_tokens": 18',
    "gemini": b'"totalTokenCount": 19',
    "ollama": b'"eval_count"',
    "bedrock_converse": b'"totalTokens"',
}
KEEPALIVE = {
    "openai_chat": b": keep-alive\n\n",
    "anthropic": b'event: ping\ndata: {"type": "ping"}\n\n',
    "gemini": b": keep-alive\n\n",
    "ollama": b"\n",
    "bedrock_converse": b"",
}
ERROR = {
    "openai_chat": b'"error": {"message"',
    "anthropic": b"event: error\n",
    "gemini": b'"status": "UNAVAILABLE"',
    "ollama": b'{"error": "',
    "bedrock_converse": b"modelStreamErrorException",
}


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with simulator() as found:
        yield found


@pytest.mark.parametrize("dialect", DIALECTS)
class TestFaults:
    async def test_a_proper_stream_has_all_that_faults_leave_out(self, provider, dialect):
        async with asking(provider, dialect) as response:
            assert response.content_type == MEDIA.get(dialect, "text/event-stream")
        data, ended = await heard(provider, dialect)
        assert ended
        for mark in (TERMINAL, FINISH, USAGE):
            assert mark[dialect] in data
        assert ERROR[dialect] not in data

    async def test_terminal_marker_finish_and_usage_are_left_out(self, provider, dialect):
        for kind, mark in (("no_done", TERMINAL), ("no_finish", FINISH), ("no_usage", USAGE)):
            await provider.fault(kind)
            data, ended = await heard(provider, dialect)
            assert ended
            assert mark[dialect] not in data
            assert b"branch" in data

    async def test_usage_thrice_and_another_finish(self, provider, dialect):
        once, _ = await heard(provider, dialect)
        await provider.fault("duplicate_usage")
        data, _ = await heard(provider, dialect)
        assert data.count(USAGE[dialect]) == once.count(USAGE[dialect]) + 2
        await provider.fault("finish", reason="never_heard_of")
        data, _ = await heard(provider, dialect)
        assert FINISH[dialect].rstrip(b'" :') in data
        assert b"never_heard_of" in data

    async def test_connection_is_cut_between_events_and_within_one(self, provider, dialect):
        whole, _ = await heard(provider, dialect)
        await provider.fault("cut", after=3)
        clean, ended = await heard(provider, dialect)
        assert not ended
        await provider.fault("cut_mid_event", after=3)
        torn, ended = await heard(provider, dialect)
        assert not ended
        assert whole.startswith(torn)
        assert torn.startswith(clean)
        assert len(torn) > len(clean)

    async def test_garbage_and_errors_stand_between_events(self, provider, dialect):
        await provider.fault("error_after_200", after=1)
        data, _ = await heard(provider, dialect)
        assert ERROR[dialect] in data
        await provider.fault("garbage", after=1)
        data, _ = await heard(provider, dialect)
        assert b"\xff\xfe" in data
        if dialect == "bedrock_converse":
            buffer = EventStreamBuffer()
            buffer.add_data(data)
            with pytest.raises(ChecksumMismatch):
                list(buffer)

    async def test_giant_lines_and_giant_answers(self, provider, dialect):
        for kind in ("giant_line", "giant_response"):
            await provider.fault(kind, bytes=50_000)
            data, ended = await heard(provider, dialect)
            assert ended
            assert data.count(b"x") >= 50_000

    async def test_keepalives_alone_and_after_some_output(self, provider, dialect):
        # Two in a row, which no proper stream has. Where there are none, all that is to be seen
        # is that nothing follows.
        sign = KEEPALIVE[dialect] * 2
        await provider.fault("keepalive_only")
        assert b"[provider" not in await begun(provider, dialect, sign)
        await provider.fault("keepalive_stall", after=2)
        data = await begun(provider, dialect, sign or b"simulator]")
        assert b"simulator]" in data
        assert TERMINAL[dialect] not in data

    async def test_silence_before_and_after_the_headers_and_after_pieces(self, provider, dialect):
        await provider.fault("hang_after_headers")
        async with asking(provider, dialect) as response:
            assert response.status == 200
        await provider.fault("stall", after=2)
        data = await begun(provider, dialect, b"simulator]")
        assert TERMINAL[dialect] not in data
        await provider.until(lambda s: s["open"] == 0 and s["aborted"] == 2)

    async def test_faults_of_answers_that_come_whole(self, provider, dialect):
        proper, _ = await heard(provider, dialect, whole=True)
        assert FINISH[dialect] in proper
        for kind in ("no_finish", "no_usage"):
            await provider.fault(kind)
            data, _ = await heard(provider, dialect, whole=True)
            assert (FINISH if kind == "no_finish" else USAGE)[dialect] not in data
        for kind in ("cut", "cut_mid_event"):
            await provider.fault(kind)
            data, ended = await heard(provider, dialect, whole=True)
            assert not ended
            assert proper.startswith(data)
        await provider.fault("garbage")
        data, _ = await heard(provider, dialect, whole=True)
        with pytest.raises(ValueError):  # noqa: PT011 - not JSON, or not even text
            json.loads(data)

    async def test_hints_on_when_to_come_back(self, provider, dialect):
        for params, header, value in (
            ({"retry_after": 7}, "retry-after", "7"),
            ({"retry_after_ms": 50}, "retry-after-ms", "50"),
            ({"x_ms_retry_after_ms": 60}, "x-ms-retry-after-ms", "60"),
            ({"should_retry": False}, "x-should-retry", "false"),
        ):
            await provider.fault("429", **params)
            async with asking(provider, dialect) as response:
                assert response.status == 429
                assert response.headers[header] == value
        await provider.fault("429", retry_after_date=100)
        async with asking(provider, dialect) as response:
            assert parsedate_to_datetime(response.headers["retry-after"])
        await provider.fault("529", retry_info=3)
        async with asking(provider, dialect) as response:
            assert response.status == 529
            assert (b'"retryDelay": "3s"' in await response.read()) == (dialect == "gemini")

    async def test_redirect_and_another_media_type(self, provider, dialect):
        await provider.fault("redirect", location="http://127.0.0.1:9/away")
        async with asking(provider, dialect) as response:
            assert response.status == 302
            assert response.headers["location"] == "http://127.0.0.1:9/away"
        await provider.fault("wrong_content_type")
        async with asking(provider, dialect) as response:
            assert response.content_type == "text/html"

    async def test_rate_limit_headers_come_with_a_proper_answer(self, provider, dialect):
        headers = {"x-ratelimit-remaining-requests": "3"}
        await provider.fault("rate_limit_headers", headers=headers)
        async with asking(provider, dialect) as response:
            assert response.status == 200
            assert response.headers["x-ratelimit-remaining-requests"] == "3"
            assert TERMINAL[dialect] in await response.read()

    async def test_requests_that_make_no_sense_are_refused(self, provider, dialect):
        path, _ = STREAMS[dialect]
        async with aiohttp.ClientSession(headers=HEADERS[dialect]) as http:
            for body in ({}, [], {"messages": 3, "contents": 3}, {"messages": [3]}):
                async with http.post(provider.url + path, json=body) as response:
                    assert response.status == 400
                    assert b"[provider simulator]" in await response.read()
