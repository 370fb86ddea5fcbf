"""A router whose own token has died before its time gets another one, and serves on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from anabranch.v1 import auth_pb2, auth_pb2_grpc
from anabranch.v1 import generation_pb2 as pb
from services.chassis import auth_client
from services.chassis.host import Host
from services.router import uplink
from tests.support.auth import bearer
from tests.support.inprocess import MODEL, cluster, model_stub
from tests.support.waiting import until

OK = grpc.StatusCode.OK


async def refused_logins(auth: Host) -> float:
    text = await asyncio.to_thread(auth.telemetry.prometheus_text)
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "anabranch_auth_logins_total" and sample.labels["outcome"] == "refused"
    )


async def test_a_withdrawn_signing_key_keeps_no_router_from_its_backends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_client, "_REISSUE_AFTER_S", 0.0)
    request = pb.GenerateRequest(model=MODEL, prompt="x", sampling=pb.Sampling(max_tokens=1))
    async with cluster(tmp_path, engines=({}, {})) as running:
        assert running.router is not None
        async with running.channel(running.router) as router, running.channel(running.auth) as door:
            stub = model_stub(router)
            await stub.Generate(request, metadata=bearer(await running.token()))
            # Its next token is due in minutes; all tokens are dead now.
            await auth_pb2_grpc.AuthServiceStub(door).RotateSigningKey(
                auth_pb2.RotateSigningKeyRequest(compromised=True),
                metadata=bearer(await running.token()),
            )
            caller = bearer(await running.token())

            async def served() -> bool:
                call = stub.Generate(request, metadata=caller)
                code = await call.code()
                assert code in (
                    grpc.StatusCode.OK,
                    grpc.StatusCode.UNAUTHENTICATED,
                    grpc.StatusCode.UNAVAILABLE,
                ), await call.details()
                return code is grpc.StatusCode.OK

            await until(served)


async def test_a_router_whose_client_is_disabled_does_not_hammer_auth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request that fails is a refusal of its token; auth is asked again after a pause."""
    monkeypatch.setattr(auth_client, "_REISSUE_AFTER_S", 0.0)
    monkeypatch.setattr(uplink, "_RENEW_RETRY_S", 3600.0)
    request = pb.GenerateRequest(model=MODEL, prompt="x", sampling=pb.Sampling(max_tokens=1))
    async with cluster(tmp_path) as running:
        assert running.router is not None
        async with running.channel(running.router) as router, running.channel(running.auth) as door:
            stub = model_stub(router)
            caller = bearer(await running.token())
            await stub.Generate(request, metadata=caller)
            await auth_pb2_grpc.AuthServiceStub(door).DisableClient(
                auth_pb2.DisableClientRequest(client_id=running.router.settings.client_id),
                metadata=bearer(await running.token()),
            )

            async def refused() -> bool:
                return await stub.Generate(request, metadata=caller).code() is not OK

            await until(refused)

            async def asked() -> bool:
                return await refused_logins(running.auth) >= 1

            await until(asked)
            for _ in range(10):
                assert await refused()
                await running.token()  # as long as a login of the router's would take
            assert await refused_logins(running.auth) == 1
