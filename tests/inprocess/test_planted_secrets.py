"""Secrets are planted wherever one can be sent or stored; none is found in anything that is said
of the service: logs, refusals, spans, metrics, reflection, audit entries, reprs."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from anabranch.v1 import auth_pb2 as pb
from anabranch.v1 import generation_pb2
from anabranch.v1.model_pb2_grpc import ModelServiceStub
from services.auth.settings import Settings
from services.auth.store import open_store
from services.auth.vault import Vault
from services.chassis.errors import Fault
from services.chassis.settings import Secret, SettingsError, describe
from tests.support.auth import Front, auth, basic, bearer
from tests.support.canaries import Planted, canary, everything_logged, otlp_collector, reprs
from tests.support.canary_calls import (
    Said,
    command_lines,
    every_form_refused,
    every_rpc_refused,
    pages,
    reflected,
)
from tests.support.inprocess import MODEL, cluster
from tests.support.provider import routes_file, simulator
from tests.support.waiting import BOUND_S, until

BURST, AT_ONCE = 3000, 24
CODES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNAVAILABLE,
}


def stored_secrets(data: Path, kek: str) -> dict[str, bytes]:
    """The service's own secrets, opened as only it can."""
    vault = Vault.under(kek)
    with closing(sqlite3.connect(data / "auth.db")) as connection:
        sealed = dict(connection.execute("SELECT name, sealed FROM sealed_secrets").fetchall())
        sealed |= connection.execute("SELECT kid, sealed_private_key FROM signing_keys").fetchall()
    assert len(sealed) >= 3
    return {name: vault.open(raw, kid=name) for name, raw in sealed.items()}


async def test_what_is_planted_in_the_auth_service_is_found_nowhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.auth.passwords._MEMORY_KIB", 8)
    planted, said = Planted(), Said()
    kek, wrong = canary(), canary()
    planted.plant("key encryption secret", kek)
    planted.plant("what a caller sent", wrong)
    with everything_logged("anabranch-auth") as logged:
        async with otlp_collector() as (bodies, endpoint):
            changes = {"key_encryption_secret": Secret(kek), "login_burst": 1_000_000}
            async with auth(tmp_path, otlp_endpoint=endpoint, **changes) as front:
                for name, raw in stored_secrets(tmp_path, kek).items():
                    planted.plant(name, raw)
                planted.plant("first secret", front.secret)
                secret = await front.new_client("orders", "generate", "observe")
                made = await front.as_admin(
                    front.stub.CreateApiKey, pb.CreateApiKeyRequest(client_id="orders")
                )
                key, token = made.api_key, await front.token("orders", secret)
                again = pb.RotateClientSecretRequest(client_id="orders")
                rotated = await front.as_admin(front.stub.RotateClientSecret, again)
                planted.plant("client secret", secret)
                planted.plant("rotated secret", rotated.client_secret)
                planted.plant("basic", basic("orders", rotated.client_secret)["Authorization"][6:])
                # Its first part is public: an id, which entries and answers name.
                planted.plant("api key", key.split("_", 2)[2])
                planted.plant("token", token)
                admin_token = await front.token()
                planted.plant("token of the administrator", admin_token)
                admin = bearer(admin_token)

                await every_rpc_refused(said, front, admin, wrong)
                await every_form_refused(said, front, wrong)
                # Real ones in the wrong places, and cut.
                for real in (rotated.client_secret, key, token, admin_token, key[:-1], token[:-1]):
                    await every_rpc_refused(said, front, bearer(token), real)
                    await every_form_refused(said, front, real)

                await burst(said, front, rotated.client_secret, key, admin, wrong)
                said.add(reprs())
                await pages(said, front.http.removeprefix("http://"))
                await reflected(said, front.channel, wrong)
                said.add(command_lines())
                said.add(await whole_trail(front))
                # Failures of ours, whose causes are logged.
                await asyncio.to_thread(without_clients, tmp_path)
                await every_rpc_refused(said, front, admin, wrong)
                await burst(said, front, rotated.client_secret, key, admin, wrong, count=100)
                assert said.codes >= CODES
        said.add(b"".join(bodies))
        assert bodies
    captured = capfd.readouterr()
    assert len(logged.records) > BURST
    for what, text in {
        "logs": logged.text,
        "answers": "\n".join(said.parts),
        "output": captured.out + captured.err,
    }.items():
        assert planted.found(text) == {}, what


def without_clients(data: Path) -> None:
    """Takes a table away. Not on the service's loop, which may be about to end a transaction."""
    with closing(sqlite3.connect(data / "auth.db", timeout=BOUND_S)) as connection:
        connection.execute("ALTER TABLE clients RENAME TO gone")


async def burst(
    said: Said, front: Front, secret: str, key: str, admin: Any, wrong: str, *, count: int = BURST
) -> None:
    """Many calls of all kinds at once, of which each fails in its own way or does not."""
    stub = front.stub
    mangled = key[:-8] + "00000000"
    kinds = [
        lambda: stub.IssueToken(pb.IssueTokenRequest(client_id="orders", client_secret=secret)),
        lambda: stub.IssueToken(pb.IssueTokenRequest(client_id="orders", client_secret=wrong)),
        lambda: stub.ExchangeApiKey(pb.ExchangeApiKeyRequest(api_key=key)),
        lambda: stub.ExchangeApiKey(pb.ExchangeApiKeyRequest(api_key=mangled)),
        lambda: stub.GetJwks(pb.GetJwksRequest()),
        lambda: stub.ListClients(pb.ListClientsRequest(), metadata=admin),
        lambda: stub.ListClients(pb.ListClientsRequest(), metadata=bearer(wrong)),
        lambda: stub.ListApiKeys(pb.ListApiKeysRequest(), metadata=bearer(key)),
        lambda: stub.IntrospectToken(pb.IntrospectTokenRequest(token=wrong), metadata=admin),
        lambda: stub.DisableClient(pb.DisableClientRequest(client_id="no-one"), metadata=admin),
    ]
    numbers = iter(range(count))

    async def some() -> None:
        for number in numbers:
            await said.by(kinds[number % len(kinds)]())

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))


async def whole_trail(front: Front) -> str:
    """Every entry, once what was noted is written."""

    async def written() -> bool:
        request = pb.QueryAuditRequest(action="key.exchange", page_size=1)
        return bool((await front.as_admin(front.stub.QueryAudit, request)).records)

    await until(written)
    texts, request = [], pb.QueryAuditRequest(page_size=1000)
    while True:
        page = await front.as_admin(front.stub.QueryAudit, request)
        texts += [record.canonical.decode() for record in page.records]
        if not page.next_page_token:
            return "\n".join(texts)
        request.page_token = page.next_page_token


async def test_the_database_s_password_is_in_no_log_refusal_or_description(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    planted, password, kek = Planted(), canary(), canary()
    planted.plant("database password", password)
    planted.plant("key encryption secret", kek)
    shown = []
    for host in ("127.0.0.1:1", "no.such.host.invalid", "[::1"):
        url = f"postgresql+asyncpg://anabranch:{password}@{host}/auth"
        with everything_logged("anabranch-auth") as logged:
            try:
                settings = Settings(
                    database_url=Secret(url), key_encryption_secret=Secret(kek), data_dir=tmp_path
                )
                shown += [
                    repr(settings),
                    repr(settings.url),
                    str(settings.url),
                    describe(Settings, "X_"),
                ]
                async with open_store(settings.url):
                    pytest.fail("there is no such database")
            except Fault as fault:
                shown += [repr(fault), fault.message, repr(fault.metadata), repr(fault.__cause__)]
            except SettingsError as refused:
                shown += [repr(refused), str(refused)]
        shown.append(logged.text)
    captured = capfd.readouterr()
    text = "\n".join([*shown, reprs(), captured.out, captured.err])
    assert "the database is away" in text
    assert planted.found(text) == {}


async def test_prompts_and_keys_on_their_way_through_router_engine_and_cloud_are_found_nowhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    planted, said, to_its_caller = Planted(), Said(), Said()
    prompt, provider_key, wrong = canary(), canary(), canary()
    for name, secret in {"prompt": prompt, "provider": provider_key, "sent": wrong}.items():
        planted.plant(name, secret)
    with everything_logged("anabranch") as logged:
        async with (
            otlp_collector() as (bodies, endpoint),
            simulator(provider_key) as provider,
            cluster(
                tmp_path, engines=({"otlp_endpoint": endpoint},), router={"otlp_endpoint": endpoint}
            ) as running,
        ):
            models = routes_file(tmp_path, provider.url)
            cloud = await running.add_cloud(
                models,
                api_keys=Secret(f"simulator={provider_key}"),
                otlp_endpoint=endpoint,
                warm=False,
            )
            secret = await running.new_client("orders", "generate")
            token = await running.token("orders", secret)
            for name, real in {"client secret": secret, "token": token}.items():
                planted.plant(name, real)
            assert running.router is not None
            async with running.channel(running.router) as channel:
                stub = ModelServiceStub(channel)
                asked = [
                    (model, metadata)
                    for model in (MODEL, "cloud-chat", "no-such", "")
                    for metadata in (bearer(token), bearer(wrong), bearer(token[:-1]), [])
                ]
                for _ in range(10):
                    for model, metadata in asked:
                        await said.by(stub.Generate(ask(prompt, model), metadata=metadata))
                for kind, params in (
                    ("4xx", {"status": 400, "message": f"bad {provider_key} {prompt}"}),
                    ("5xx", {"status": 500, "message": f"{provider_key} {prompt}"}),
                    ("4xx", {"status": 401, "message": f"wrong key {provider_key}"}),
                ):
                    await provider.fault(kind, 4, **params)
                    request = ask(prompt, "cloud-chat")
                    # The provider's words on a request are for the one who sent it.
                    await to_its_caller.by(stub.Generate(request, metadata=bearer(token)))
                # What carries a prompt shows it, which is why nobody logs it.
                to_its_caller.add(reprs())
                assert planted.found("\n".join(to_its_caller.parts)).keys() <= {"prompt"}
                for host in (running.router, cloud, running.engines[0].host, running.auth):
                    await pages(said, host.http_address)
                assert said.codes >= {grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED}
        said.add(b"".join(bodies))
        assert bodies
    captured = capfd.readouterr()
    for what, text in {
        "logs": logged.text,
        "answers": "\n".join(said.parts),
        "output": captured.out + captured.err,
    }.items():
        assert planted.found(text) == {}, what


def ask(text: str, model: str) -> generation_pb2.GenerateRequest:
    message = generation_pb2.Message(
        role=generation_pb2.ROLE_USER, content=[generation_pb2.ContentPart(text=text)]
    )
    sampling = generation_pb2.Sampling(max_tokens=4)
    return generation_pb2.GenerateRequest(model=model, messages=[message], sampling=sampling)


def test_a_secret_is_found_in_every_spelling_and_in_part() -> None:
    """The search itself can fail."""
    secret, planted = canary(), Planted()
    planted.plant("it", secret)
    inner = secret[7:30]
    for text in (
        f"x{secret}y",
        f"...{inner}",
        base64.b64encode(b"ab" + secret.encode()).decode(),
        base64.b64encode(b"a" + inner.encode()).decode(),
        secret.encode().hex(),
        repr({"key": secret}),
    ):
        assert planted.found(text).keys() == {"it"}, text
    # A character that no secret holds: otherwise it may be the one that follows there.
    assert planted.found(secret[:15] + "*" + secret[20:30]) == {}
    assert planted.found(canary()) == {}
