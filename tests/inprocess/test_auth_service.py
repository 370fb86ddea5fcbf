"""The auth service over gRPC: tokens, clients, signing keys and its very first start."""

import json
import re
import stat
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import grpc
import jwt
import pytest
from google.protobuf.duration_pb2 import Duration

from anabranch.v1 import auth_pb2 as pb
from anabranch.v1 import errors_pb2
from anabranch.v1.auth_pb2_grpc import AuthServiceStub
from services.auth.app import running
from services.auth.core.roles import SCOPES
from services.auth.settings import Settings
from services.auth.vault import VaultError
from services.chassis.encryption.keychain_document import new_keychain_text
from services.chassis.settings import Secret, SettingsError
from tests.support.auth import ISSUER, Front, auth, bearer, real_key, refused, until

KEK = Secret("k" * 32)


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with auth(tmp_path) as opened:
        yield opened


# Tokens


async def test_a_login_yields_a_token_that_other_services_can_verify(front: Front) -> None:
    issued = await front.stub.IssueToken(
        pb.IssueTokenRequest(
            grant_type="client_credentials", client_id="admin", client_secret=front.secret
        )
    )
    assert (issued.token_type, issued.expires_in.seconds) == ("Bearer", 300)
    assert list(issued.scopes) == sorted(set(SCOPES) - {"relay"})
    keys = await front.stub.GetJwks(pb.GetJwksRequest())
    assert keys.issuer == ISSUER
    (key,) = jwt.PyJWKSet.from_json(keys.jwks_json).keys
    claims = jwt.decode(
        issued.access_token, key.key, algorithms=["EdDSA"], issuer=ISSUER, audience="anabranch"
    )
    assert claims["client_id"] == claims["sub"] == "admin"
    assert claims["tenant"] == "operators"
    assert claims["models"] == ["*"]
    assert claims["exp"] - claims["iat"] == 300
    assert len(issued.access_token) < 4096


async def test_a_token_may_carry_fewer_scopes_but_never_more(front: Front) -> None:
    secret = await front.new_client("orders", "generate", "relay")
    request = pb.IssueTokenRequest(client_id="orders", client_secret=secret, scopes=["relay"])
    assert list((await front.stub.IssueToken(request)).scopes) == ["relay"]
    request.scopes[:] = ["admin"]
    fault = await refused(front.stub.IssueToken(request))
    assert fault.reason == errors_pb2.ERROR_REASON_ACCESS_DENIED


async def test_every_wrong_login_gets_the_same_answer(front: Front) -> None:
    gone = await front.new_client("gone")
    await front.as_admin(front.stub.DisableClient, pb.DisableClientRequest(client_id="gone"))
    answers = set()
    for client_id, secret in [("admin", "wrong"), ("nobody", "wrong"), ("gone", gone)]:
        fault = await refused(front.token(client_id, secret))
        answers.add((fault.code, fault.reason, fault.message, tuple(fault.metadata.items())))
    assert len(answers) == 1
    assert answers.pop()[0] == grpc.StatusCode.UNAUTHENTICATED


async def test_a_malformed_login_reports_every_violation(front: Front) -> None:
    request = pb.IssueTokenRequest(grant_type="password", client_id="No", scopes=["root"])
    fault = await refused(front.stub.IssueToken(request))
    assert fault.code == grpc.StatusCode.INVALID_ARGUMENT
    fields = [v.field for v in fault.violations]
    assert fields == ["grant_type", "client_id", "client_secret", "scopes[0]"]


async def test_failed_logins_are_slowed_down_known_client_or_not(tmp_path: Path) -> None:
    async with auth(tmp_path, login_burst=3, login_rate=0.01) as front:
        for client_id in ("nobody", "orders"):
            if client_id == "orders":
                await front.new_client("orders")
            for _ in range(3):
                fault = await refused(front.token(client_id, "wrong"))
                assert fault.code == grpc.StatusCode.UNAUTHENTICATED
            fault = await refused(front.token(client_id, "wrong"))
            assert fault.code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert fault.retry_after
            assert fault.retry_after > 1
        for _ in range(10):
            await front.token()


async def test_a_revoked_token_is_dead_and_every_verifier_is_told_within_a_second(
    front: Front,
) -> None:
    secret = await front.new_client("orders")
    token = await front.token("orders", secret)
    other = await front.token("orders", secret)
    assert await front.active(token)
    request = pb.RevokeTokenRequest(token=token)
    await front.stub.RevokeToken(request, metadata=bearer(token))
    assert not await front.active(token)
    assert await front.active(other)
    keys = await front.stub.GetJwks(pb.GetJwksRequest())
    read = jwt.decode(token, options={"verify_signature": False})
    assert list(keys.revoked_token_ids) == [read["jti"]]
    assert keys.max_age.ToMilliseconds() <= 1000

    async def unusable() -> bool:
        try:
            await front.stub.RevokeToken(request, metadata=bearer(token))
        except grpc.aio.AioRpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
        return False

    await until(unusable)


async def test_revoking_what_is_dead_or_unknown_is_no_error(front: Front) -> None:
    for token in ("nonsense", "a.b.c", (await front.token())[:-2] + "xx"):
        await front.as_admin(front.stub.RevokeToken, pb.RevokeTokenRequest(token=token))


async def test_a_client_sees_and_revokes_its_own_tokens_only(front: Front) -> None:
    mine, other = await front.new_client("orders"), await front.new_client("billing")
    token = await front.token("orders", mine)
    thief = bearer(await front.token("billing", other))
    fault = await refused(
        front.stub.RevokeToken(pb.RevokeTokenRequest(token=token), metadata=thief)
    )
    assert fault.reason == errors_pb2.ERROR_REASON_ACCESS_DENIED
    asked = pb.IntrospectTokenRequest(token=token)
    assert await front.stub.IntrospectToken(asked, metadata=thief) == pb.IntrospectTokenResponse()
    own = await front.stub.IntrospectToken(asked, metadata=bearer(token))
    assert own.active
    assert (own.client_id, own.tenant, list(own.scopes)) == ("orders", "shop", ["generate"])
    assert own.expires_at.seconds - own.issued_at.seconds == 300


# Clients


async def test_a_created_client_is_shown_whole_and_can_log_in(front: Front) -> None:
    created = await front.as_admin(
        front.stub.CreateClient,
        pb.CreateClientRequest(
            tenant="shop",
            display_name="Orders",
            scopes=["relay", "generate"],
            token_life=Duration(seconds=60),
        ),
    )
    assert re.fullmatch(r"[a-z0-9-]{3,63}", created.client.client_id)
    assert re.fullmatch(r"abs_[A-Za-z0-9_-]{43}", created.client_secret)
    assert list(created.client.scopes) == ["generate", "relay"]
    assert not created.client.disabled
    token = await front.token(created.client.client_id, created.client_secret)
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 60


async def test_a_taken_id_is_refused(front: Front) -> None:
    await front.new_client("orders")
    fault = await refused(front.new_client("orders"))
    assert fault.code == grpc.StatusCode.ALREADY_EXISTS
    assert fault.reason == errors_pb2.ERROR_REASON_ALREADY_EXISTS


async def test_a_bad_client_reports_every_violation(front: Front) -> None:
    request = pb.CreateClientRequest(
        client_id="A", display_name="x" * 201 + "\n", token_life=Duration(seconds=601)
    )
    fault = await refused(front.as_admin(front.stub.CreateClient, request))
    assert [v.field for v in fault.violations] == [
        "client_id",
        "tenant",
        "display_name",
        "display_name",
        "scopes",
        "token_life",
    ]


async def test_administration_needs_the_scope_admin(front: Front) -> None:
    secret = await front.new_client("orders", "generate", "relay")
    metadata = bearer(await front.token("orders", secret))
    calls = [
        (front.stub.CreateClient, pb.CreateClientRequest()),
        (front.stub.ListClients, pb.ListClientsRequest()),
        (front.stub.UpdateClient, pb.UpdateClientRequest()),
        (front.stub.DisableClient, pb.DisableClientRequest()),
        (front.stub.RotateClientSecret, pb.RotateClientSecretRequest()),
        (front.stub.RotateSigningKey, pb.RotateSigningKeyRequest()),
    ]
    for call, request in calls:
        assert (await refused(call(request))).code == grpc.StatusCode.UNAUTHENTICATED
        fault = await refused(call(request, metadata=metadata))
        assert fault.code == grpc.StatusCode.PERMISSION_DENIED
    narrow = bearer(await front.token("admin", front.secret, "generate"))
    fault = await refused(front.stub.ListClients(pb.ListClientsRequest(), metadata=narrow))
    assert fault.code == grpc.StatusCode.PERMISSION_DENIED


async def test_clients_are_listed_in_pages(front: Front) -> None:
    for name in ("c-1", "c-2", "c-3"):
        await front.new_client(name)
    seen, token = [], ""
    while True:
        request = pb.ListClientsRequest(page_size=3, page_token=token)
        page = await front.as_admin(front.stub.ListClients, request)
        seen += [client.client_id for client in page.clients]
        token = page.next_page_token
        if not token:
            break
    assert seen == ["admin", "c-1", "c-2", "c-3"]
    bad = pb.ListClientsRequest(page_size=-1, page_token="!!")
    fault = await refused(front.as_admin(front.stub.ListClients, bad))
    assert [v.field for v in fault.violations] == ["page_size", "page_token"]


async def test_an_update_changes_what_is_set_and_nothing_else(front: Front) -> None:
    secret = await front.new_client("orders")
    request = pb.UpdateClientRequest(client_id="orders", scopes=["relay"])
    updated = (await front.as_admin(front.stub.UpdateClient, request)).client
    assert (list(updated.scopes), updated.tenant) == (["relay"], "shop")
    request = pb.UpdateClientRequest(client_id="orders", display_name="Orders")
    updated = (await front.as_admin(front.stub.UpdateClient, request)).client
    assert (list(updated.scopes), updated.display_name) == (["relay"], "Orders")
    issued = await front.stub.IssueToken(
        pb.IssueTokenRequest(client_id="orders", client_secret=secret)
    )
    assert list(issued.scopes) == ["relay"]


async def test_a_disabled_client_and_its_tokens_are_dead(front: Front) -> None:
    token = await front.token("orders", await front.new_client("orders"))
    assert await front.active(token)
    for _ in range(2):
        await front.as_admin(front.stub.DisableClient, pb.DisableClientRequest(client_id="orders"))
    assert not await front.active(token)
    keys = await front.stub.GetJwks(pb.GetJwksRequest())
    assert list(keys.disabled_client_ids) == ["orders"]


async def test_a_rotated_secret_replaces_the_old_one(front: Front) -> None:
    old = await front.new_client("orders")
    request = pb.RotateClientSecretRequest(client_id="orders")
    new = (await front.as_admin(front.stub.RotateClientSecret, request)).client_secret
    await front.token("orders", new)
    assert (await refused(front.token("orders", old))).code == grpc.StatusCode.UNAUTHENTICATED


async def test_changes_of_an_unknown_client_are_not_found(front: Front) -> None:
    for call, request in [
        (front.stub.UpdateClient, pb.UpdateClientRequest(client_id="nobody")),
        (front.stub.DisableClient, pb.DisableClientRequest(client_id="nobody")),
        (front.stub.RotateClientSecret, pb.RotateClientSecretRequest(client_id="nobody")),
    ]:
        fault = await refused(front.as_admin(call, request))
        assert fault.code == grpc.StatusCode.NOT_FOUND


async def test_a_new_signing_key_is_published_before_it_signs(front: Front) -> None:
    before = jwt.get_unverified_header(await front.token())["kid"]
    rotated = await front.as_admin(front.stub.RotateSigningKey, pb.RotateSigningKeyRequest())
    assert rotated.active_at.seconds > time.time() + 600
    keys = json.loads((await front.stub.GetJwks(pb.GetJwksRequest())).jwks_json)["keys"]
    assert [key["kid"] for key in keys] == [before, rotated.kid]
    token = await front.token()
    assert jwt.get_unverified_header(token)["kid"] == before
    assert await front.active(token)


# Start


async def test_the_first_secret_is_shown_once_and_survives_a_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(
        listen="127.0.0.1:0", http_listen="127.0.0.1:0", registry="none", data_dir=tmp_path
    )
    async with running(settings):
        pass
    shown = capsys.readouterr()
    (secret,) = re.findall(r"abs_[A-Za-z0-9_-]{43}", shown.out)
    assert "abs_" not in shown.err
    async with running(settings) as host, grpc.aio.insecure_channel(host.address) as channel:
        assert capsys.readouterr().out == ""
        request = pb.IssueTokenRequest(client_id="admin", client_secret=secret)
        assert (await AuthServiceStub(channel).IssueToken(request)).access_token


async def test_a_named_file_gets_the_first_secret_instead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with auth(tmp_path):
        pass
    shown = capsys.readouterr()
    assert "abs_" not in shown.out + shown.err
    assert str(tmp_path / "secret") in shown.out
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "auth.db").stat().st_mode) == 0o600


async def test_replicas_on_one_database_honour_each_others_tokens_and_revocations(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(auth(tmp_path, key_encryption_secret=KEK))
        two = await stack.enter_async_context(auth(tmp_path, key_encryption_secret=KEK))
        token = await one.token("orders", await one.new_client("orders"))
        assert await two.active(token)
        await one.as_admin(one.stub.RevokeToken, pb.RevokeTokenRequest(token=token))
        assert not await two.active(token)


async def test_a_service_moves_from_the_file_beside_its_database_to_a_keychain(
    tmp_path: Path,
) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(new_keychain_text(None, "2026-05"))
    async with auth(tmp_path) as front:
        token = await front.token()
    secret = front.secret
    kid, _ = real_key(tmp_path)
    assert jwt.get_unverified_header(token)["kid"] == kid

    for change in (None, "2026-11"):
        if change is not None:
            keys.write_text(new_keychain_text(keys.read_text(), change))
        async with auth(tmp_path, key_encryption_keys_file=keys) as front:
            assert jwt.get_unverified_header(await front.token(secret=secret))["kid"] == kid
        # From here on the keychain is enough.
        (tmp_path / "auth.db.key").unlink(missing_ok=True)

    keys.write_text(new_keychain_text(None, "unrelated"))
    with pytest.raises(VaultError, match="'2026-11'"):
        async with auth(tmp_path, key_encryption_keys_file=keys):
            pass
    assert not (tmp_path / "auth.db.key").exists()


async def test_a_keychain_that_is_none_is_a_bad_setting(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text("{}")
    with pytest.raises(SettingsError, match=r"keys\.json: a keychain must have `current`"):
        async with auth(tmp_path, key_encryption_keys_file=keys):
            pass


async def test_no_secret_reaches_log_or_metrics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    async with auth(tmp_path) as front:
        secret = await front.new_client("orders")
        token = await front.token("orders", secret)
        await refused(front.token("orders", "wrong-" + secret))
        async with aiohttp.ClientSession() as http:
            metrics = await (await http.get(f"{front.http}/metrics")).text()
        said = caplog.text + metrics + "".join(capsys.readouterr())
        for private in (secret, front.secret, token.split(".")[2]):
            assert private not in said
