"""A session opened with an API key outlives its first token, and ends with its key."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from anabranch.v1 import auth_pb2, auth_pb2_grpc, session_pb2
from anabranch.v1 import generation_pb2 as pb
from tests.support.auth import bearer
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub
from tests.support.waiting import BOUND_S, until


async def api_key_of(running: Cluster, client_id: str) -> auth_pb2.CreateApiKeyResponse:
    await running.new_client(client_id, "generate")
    async with running.channel(running.auth) as channel:
        made: auth_pb2.CreateApiKeyResponse = await auth_pb2_grpc.AuthServiceStub(
            channel
        ).CreateApiKey(
            auth_pb2.CreateApiKeyRequest(client_id=client_id),
            metadata=bearer(await running.token()),
        )
    return made


async def exchanges(running: Cluster) -> int:
    """How often a key was exchanged, as the audit trail says."""
    async with running.channel(running.auth) as channel:
        found = await auth_pb2_grpc.AuthServiceStub(channel).QueryAudit(
            auth_pb2.QueryAuditRequest(action="key.exchange"),
            metadata=bearer(await running.token()),
        )
    return len(found.records)


async def ended(call: Any, stream: int) -> session_pb2.SessionResponseFrame:
    """The last frame of a request that is asked now."""
    request = pb.GenerateRequest(
        model=MODEL, prompt="hello", sampling=pb.Sampling(max_tokens=3, ignore_eos=True)
    )
    frame = session_pb2.SessionRequestFrame(stream=stream, start=request)
    await call.write(session_pb2.SessionRequest(frames=[frame]))
    async with asyncio.timeout(BOUND_S):
        while True:
            for answered in (await call.read()).frames:
                if answered.stream == stream and answered.last:
                    return answered  # type: ignore[no-any-return]


async def test_a_session_goes_on_with_new_tokens_for_its_key_until_that_is_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every token counts as about to end, and every moment is one to look at it.
    monkeypatch.setattr("services.chassis.authn._EXCHANGE_AHEAD_S", 3600.0)
    monkeypatch.setattr("services.chassis.authn._EXCHANGE_AHEAD_SHARE", 1.0)
    monkeypatch.setattr("services.chassis.model_session._LOOK_AT_KEY_S", 0.02)
    async with cluster(tmp_path) as running:
        assert running.router is not None
        made = await api_key_of(running, "shop")
        async with running.channel(running.router) as channel:
            call = model_stub(channel).Session(metadata=bearer(made.api_key))
            await call.read()
            assert not (await ended(call, 1)).HasField("error")

            async def renewed() -> bool:
                return await exchanges(running) >= 3

            await until(renewed)
            assert not (await ended(call, 2)).HasField("error")
            async with running.channel(running.auth) as door:
                await auth_pb2_grpc.AuthServiceStub(door).RevokeApiKey(
                    auth_pb2.RevokeApiKeyRequest(key_id=made.info.key_id),
                    metadata=bearer(await running.token()),
                )
            stream = 2

            async def dead() -> bool:
                nonlocal stream
                stream += 1
                frame = await ended(call, stream)
                return frame.error.code == grpc.StatusCode.UNAUTHENTICATED.value[0]

            await until(dead)
            call.cancel()
