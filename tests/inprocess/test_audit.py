"""The audit trail of a real router: requests, acts and refusals are in its files, which verify."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest
from click.testing import CliRunner

from anabranch.v1 import admin_pb2, admin_pb2_grpc, model_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.audit.command import audit
from services.chassis.audit.entry import Act
from services.chassis.audit.file_sink import FileSink
from services.chassis.audit.segments import segments_of
from services.chassis.encryption.keychain_document import new_keychain_text
from services.chassis.settings import SettingsError
from tests.support.audit import acts_in
from tests.support.auth import bearer
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub
from tests.support.waiting import until

PROMPT = "tell nobody about the otters"


def ask(number: int = 0) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        model=MODEL,
        messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=PROMPT)])],
        sampling=pb.Sampling(max_tokens=5, ignore_eos=True),
        request_id=f"request-{number}",
    )


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(audit, [str(a) for a in arguments])
    return result.exit_code, result.output


@asynccontextmanager
async def audited(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[Cluster, Path]]:
    """A cluster whose router keeps a trail in the directory."""
    directory = tmp_path / "trail"
    router = {"audit_dir": directory, **settings}
    async with cluster(tmp_path, router=router) as running:
        yield running, directory


async def outcomes(directory: Path, action: str, count: int) -> list[Act]:
    """What came of all acts of a kind, once there are so many."""
    found: list[Act] = []

    async def there() -> bool:
        found[:] = [
            a
            for a in acts_in(directory)
            if a.action == action and a.details.get("phase") != "begun"
        ]
        return len(found) >= count

    await until(there)
    return found


async def test_requests_acts_and_refusals_are_in_the_trail_and_it_verifies(tmp_path: Path) -> None:
    async with audited(tmp_path) as (running, directory):
        assert running.router is not None
        secret = await running.new_client("shop", "generate")
        shop = await running.token("shop", secret)
        admin = await running.token()
        async with running.channel(running.router) as channel:
            stub = model_stub(channel)
            operator = admin_pb2_grpc.RouterAdminServiceStub(channel)
            await stub.Generate(ask(1), metadata=bearer(shop))
            _ = [c async for c in stub.StreamGenerate(ask(2), metadata=bearer(shop))]
            session = stub.Session(metadata=bearer(shop))
            start = session_pb2.SessionRequestFrame(stream=1, start=ask(3))
            await session.write(session_pb2.SessionRequest(frames=[start]))
            requests = await outcomes(directory, "model.generate", 3)
            session.cancel()
            counting = model_pb2.CountTokensRequest(model=MODEL, request=ask())
            await stub.CountTokens(counting, metadata=bearer(shop))
            (counted,) = await outcomes(directory, "model.count_tokens", 1)
            assert (counted.client_id, counted.target, counted.succeeded) == ("shop", MODEL, True)
            embedding = model_pb2.EmbedRequest(model=MODEL, inputs=[PROMPT])
            answered = await stub.Embed(embedding, metadata=bearer(shop)).code()
            (embedded,) = await outcomes(directory, "model.embed", 1)
            assert embedded.succeeded is (answered is grpc.StatusCode.OK)
            assert embedded.peer == "127.0.0.1"
            (backend,) = await running.backends()
            await operator.DrainBackend(
                admin_pb2.DrainBackendRequest(backend_id=backend.backend_id), metadata=bearer(admin)
            )
            # Who was answered finds it in the trail.
            (drain,) = [a for a in acts_in(directory) if a.details.get("phase") == "ended"]
            with pytest.raises(grpc.aio.AioRpcError):
                await operator.CancelRequest(
                    admin_pb2.CancelRequestRequest(request_id="none"), metadata=bearer(admin)
                )
            await operator.SetLogLevel(
                admin_pb2.SetLogLevelRequest(level="info"), metadata=bearer(admin)
            )
            for metadata in (bearer(shop), bearer("not.a.token"), []):
                with pytest.raises(grpc.aio.AioRpcError):
                    await operator.ResetBreaker(
                        admin_pb2.ResetBreakerRequest(backend_id="x"), metadata=metadata
                    )
            refused = await outcomes(directory, "rpc.refused", 3)
    for number, one in enumerate(requests, 1):
        assert (one.client_id, one.tenant, one.target) == ("shop", "shop", MODEL)
        assert one.succeeded
        assert one.details["request_id"] == f"request-{number}"
        assert one.details["completion_tokens"] == 5
        assert one.details["tier"] == "LOCAL"
        assert str(one.details["backend"]).startswith("engine-")
    assert len(requests) == 3  # the engine, to which they were relayed, writes none of them
    assert (drain.action, drain.client_id, drain.target, drain.succeeded) == (
        *("router.drain_backend", "admin", backend.backend_id, True),
    )
    assert drain.peer
    acts = acts_in(directory)
    (cancel,) = [a for a in acts if a.action == "router.cancel_request" and "error" in a.details]
    assert (cancel.succeeded, cancel.details["error"]) == (False, "NOT_FOUND")
    assert [(a.client_id, a.details["error"]) for a in refused] == [
        *(("shop", "ACCESS_DENIED"), ("", "CREDENTIAL_REJECTED"), ("", "CREDENTIAL_REJECTED")),
    ]
    assert acts[0].action == "trail.opened"
    code, output = run("verify", directory, "--public-key", directory / "audit.key.pub")
    assert code == 0, output
    written = b"".join(segment.path.read_bytes() for segment in segments_of(directory))
    for hidden in (PROMPT, "otters", secret, shop, admin, "not.a.token"):
        assert hidden.encode() not in written

    segment = segments_of(directory)[0].path
    segment.write_bytes(written.replace(b'"client_id":"admin"', b'"client_id":"nobod"', 1))
    code, output = run("verify", directory)
    assert code == 4
    assert "altered" in output


@pytest.mark.parametrize("keys", [True, False])
async def test_a_tenant_decides_how_much_of_its_requests_is_written(
    tmp_path: Path, keys: bool
) -> None:
    keychain = tmp_path / "keys.json"
    keychain.write_text(new_keychain_text(None, "first"))
    settings = {"encryption_keys_file": keychain} if keys else {}
    details = {"silent": "NONE", "plain": "METADATA", "sealed": "CONTENT", "chinese": "CONTENT"}
    async with audited(tmp_path, **settings) as (running, directory):
        assert running.router is not None
        async with running.channel(running.router) as channel:
            for number, (tenant, detail) in enumerate(details.items()):
                cipher = "CIPHER_SM4_GCM" if tenant == "chinese" else "CIPHER_AES_256_GCM"
                detail = f"AUDIT_DETAIL_{detail}"
                await running.set_tenant(tenant, audit_detail=detail, cipher=cipher)
                secret = await running.new_client(f"of-{tenant}", "generate", tenant=tenant)
                token = await running.token(f"of-{tenant}", secret)
                answer = await model_stub(channel).Generate(ask(number), metadata=bearer(token))
        acts = await outcomes(directory, "model.generate", 3)
    assert [(a.tenant, "content" in a.details) for a in acts] == [
        *(("plain", False), ("sealed", keys), ("chinese", keys)),
    ]
    written = b"".join(segment.path.read_bytes() for segment in segments_of(directory))
    assert b"otters" not in written
    code, output = run("content", directory, "request-3", "--keychain", keychain)
    assert code == (0 if keys else 4)
    if keys:
        opened = json.loads(output)
        assert PROMPT in opened["prompt"]
        assert opened["answer"] == answer.choices[0].text
        other = tmp_path / "other.json"
        other.write_text(new_keychain_text(None, "other"))
        code, output = run("content", directory, "request-3", "--keychain", other)
        assert code == 4
        assert "otters" not in output


async def test_while_the_trail_cannot_be_written_no_act_is_done_and_requests_are_then_refused(
    tmp_path: Path,
) -> None:
    full = False
    real = FileSink._append

    def append(self: FileSink, *arguments: Any) -> None:
        if full:
            raise OSError(28, "No space left on device")
        real(self, *arguments)

    with mock.patch.object(FileSink, "_append", append):
        async with audited(tmp_path, audit_spool=100) as (running, directory):
            assert running.router is not None
            secret = await running.new_client("shop", "generate")
            shop, admin = bearer(await running.token("shop", secret)), bearer(await running.token())
            async with running.channel(running.router) as channel:
                stub = model_stub(channel)
                operator = admin_pb2_grpc.RouterAdminServiceStub(channel)
                (backend,) = await running.backends()
                drain = admin_pb2.DrainBackendRequest(backend_id=backend.backend_id)
                full = True
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await operator.DrainBackend(drain, metadata=admin)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                assert not (await running.backends())[0].drained
                served = 0
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    while served < 1000:
                        await stub.Generate(ask(served), metadata=shop)
                        served += 1
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                assert 90 <= served <= 100
                full = False

                async def again() -> bool:
                    try:
                        await stub.Generate(ask(2000), metadata=shop)
                    except grpc.aio.AioRpcError:
                        return False
                    return True

                await until(again)
                await operator.DrainBackend(drain, metadata=admin)
    requests = [a.details["request_id"] for a in acts_in(directory) if a.action == "model.generate"]
    assert requests[:served] == [f"request-{n}" for n in range(served)]
    code, output = run("verify", directory)
    assert code == 0, output


async def test_the_trail_goes_on_over_restarts_of_the_router(tmp_path: Path) -> None:
    async with audited(tmp_path) as (running, directory):
        for _ in range(2):
            async with running.one_more_router(audit_dir=directory):
                pass
    opened = [a for a in acts_in(directory) if a.action == "trail.opened"]
    assert len(opened) == 3
    code, output = run("verify", directory, "--public-key", directory / "audit.key.pub")
    assert code == 0, output


async def test_a_router_that_must_keep_a_trail_does_not_start_without_it(tmp_path: Path) -> None:
    async with cluster(tmp_path, router=None) as running:
        (tmp_path / "file").touch()
        for settings, error in (
            ({"audit_dir": tmp_path / "file"}, FileExistsError),
            ({"audit_otlp": True}, SettingsError),
        ):
            with pytest.raises(ExceptionGroup) as caught:
                async with running.one_more_router(**settings):
                    pass
            assert caught.value.subgroup(error) is not None
