"""A router whose own token has died before its time gets another one, and serves on."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from anabranch.v1 import auth_pb2, auth_pb2_grpc
from anabranch.v1 import generation_pb2 as pb
from services.chassis import auth_client
from tests.support.auth import bearer
from tests.support.inprocess import MODEL, cluster, model_stub
from tests.support.waiting import until


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
