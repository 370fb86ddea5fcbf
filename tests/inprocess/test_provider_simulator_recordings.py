"""The provider simulator replays recorded streams of providers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
from yarl import URL

from tests.support.provider import Provider, simulator
from tests.support.raw_requests import HEADERS, STREAMS
from tests.support.recordings import RECORDINGS


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with simulator() as found:
        yield found


RECORDED = sorted(p for p in RECORDINGS.glob("*/*.*") if p.suffix not in (".json", ".md"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda p: f"{p.parent.name}/{p.stem}")
async def test_recordings_are_replayed_byte_for_byte(provider, path):
    body = STREAMS["openai_chat"][1] | {"model": f"recording:{path.parent.name}/{path.stem}"}
    headers = HEADERS["openai_chat"]
    async with aiohttp.ClientSession(headers=headers) as http:
        for seed in ("1", "2"):
            async with http.post(
                provider.url + STREAMS["openai_chat"][0], json=body, headers={"x-sim-seed": seed}
            ) as response:
                assert response.status == 200
                assert await response.read() == path.read_bytes()


@pytest.mark.parametrize("name", ["recording:openai_chat/nothing", "recording:../../etc/passwd"])
async def test_what_is_no_recording_is_not_found(provider, name):
    async with aiohttp.ClientSession(headers=HEADERS["openai_chat"]) as http:
        body = STREAMS["openai_chat"][1] | {"model": name}
        async with http.post(provider.url + STREAMS["openai_chat"][0], json=body) as response:
            assert response.status == 404


@pytest.mark.parametrize(
    "model", ["recording:openai_chat/openai", "recording%3Aopenai_chat%2Fopenai"]
)
async def test_recordings_are_named_in_paths_too(provider, model):
    expected = (RECORDINGS / "openai_chat/openai.sse").read_bytes()
    for dialect, path in (
        ("gemini", f"/v1beta/models/{model}:streamGenerateContent?alt=sse"),
        ("bedrock_converse", f"/model/{model}/converse-stream"),
    ):
        url = provider.url + path
        async with (
            aiohttp.ClientSession(headers=HEADERS[dialect]) as http,
            http.post(URL(url, encoded=True), json=STREAMS[dialect][1]) as response,
        ):
            assert response.status == 200
            assert await response.read() == expected


async def test_recordings_have_faults_as_answers_have(provider):
    await provider.fault("cut_mid_event", after=3, seed=5)
    body = STREAMS["openai_chat"][1] | {"model": "recording:openai_chat/openai"}
    async with aiohttp.ClientSession(headers=HEADERS["openai_chat"]) as http:
        with pytest.raises(aiohttp.ClientError):
            async with http.post(provider.url + STREAMS["openai_chat"][0], json=body) as response:
                await response.read()
