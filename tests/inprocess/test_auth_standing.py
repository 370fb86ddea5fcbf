"""What a caller may do is what it has now, whatever its token says; and what is refused is known.

A token outlives a demotion by minutes. It opens models for so long, but undoes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from anabranch.api_keys import compose
from anabranch.v1 import auth_pb2 as pb
from anabranch.v1 import errors_pb2
from services.auth.core.throttle import LoginThrottle
from services.chassis.audit.segments import lines_of, segments_of
from services.chassis.authn import Verifier
from services.chassis.errors import Fault
from tests.support.auth import Front, auth, bearer, refused
from tests.support.local_keys import ISSUER, LocalKeys
from tests.support.waiting import until

DENIED = errors_pb2.ERROR_REASON_ACCESS_DENIED
REJECTED = errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with auth(tmp_path) as opened:
        yield opened


async def trail(front: Front, action: str) -> list[pb.AuditRecord]:
    asked = pb.QueryAuditRequest(action=action)
    return list((await front.as_admin(front.stub.QueryAudit, asked)).records)


@pytest.mark.parametrize("scope", ["admin", "tenant-admin"])
async def test_who_was_demoted_promotes_itself_no_more(front: Front, scope: str) -> None:
    secret = await front.new_client("mallory", scope, "generate")
    token = bearer(await front.token("mallory", secret))
    stub = front.stub
    less = pb.UpdateClientRequest(client_id="mallory", scopes=["generate"])
    await front.as_admin(stub.UpdateClient, less)
    back = pb.UpdateClientRequest(client_id="mallory", scopes=[scope, "generate"])
    friend = pb.CreateClientRequest(client_id="friend", tenant="shop", scopes=[scope])
    key = pb.CreateApiKeyRequest(client_id="mallory", scopes=[scope])
    for call, request in (
        (stub.UpdateClient, back),
        (stub.CreateClient, friend),
        (stub.CreateApiKey, key),
    ):
        assert (await refused(call(request, metadata=token))).reason == DENIED, request
    if scope == "admin":
        role = pb.SetRoleRequest(role=pb.AccessRole(name="mine", scopes=["admin"]))
        rotation = pb.RotateSigningKeyRequest(compromised=True)
        assert (await refused(stub.SetRole(role, metadata=token))).reason == DENIED
        assert (await refused(stub.RotateSigningKey(rotation, metadata=token))).reason == DENIED

        async def written() -> bool:
            return [r.succeeded for r in await trail(front, "signing-key.replace")] == [False]

        await until(written)


async def test_who_was_disabled_changes_nothing_before_its_token_is_known_to_be_dead(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = await front.new_client("leaver", "admin")
    token = bearer(await front.token("leaver", secret))
    # As at a replica that has not heard of it.
    monkeypatch.setattr(Verifier, "check_live", lambda self, principal: None)
    await front.as_admin(front.stub.DisableClient, pb.DisableClientRequest(client_id="leaver"))
    request = pb.CreateClientRequest(client_id="back-door", tenant="shop", scopes=["admin"])
    assert (await refused(front.stub.CreateClient(request, metadata=token))).reason == REJECTED


async def test_a_client_revokes_its_tokens_up_to_a_number_of_live_ones(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.auth.grants.MOST_REVOCATIONS", 3)
    secret = await front.new_client("orders")
    for _ in range(3):
        token = await front.token("orders", secret)
        await front.stub.RevokeToken(pb.RevokeTokenRequest(token=token), metadata=bearer(token))
    token = await front.token("orders", secret)
    one_more = front.stub.RevokeToken(pb.RevokeTokenRequest(token=token), metadata=bearer(token))
    fault = await refused(one_more)
    assert fault.reason == errors_pb2.ERROR_REASON_QUOTA_EXCEEDED
    assert fault.retry_after
    assert fault.quota


async def test_who_is_turned_away_is_in_the_databases_trail(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = await front.new_client("orders")
    token = bearer(await front.token("orders", secret))
    await refused(front.stub.ListClients(pb.ListClientsRequest(), metadata=token))
    await refused(front.stub.ListClients(pb.ListClientsRequest(), metadata=bearer("none")))
    monkeypatch.setattr(LoginThrottle, "attempt", lambda self, name: 1.0)
    await refused(front.token("orders", "wrong"))
    monkeypatch.undo()

    async def written() -> bool:
        doors = [(r.client_id, r.target) for r in await trail(front, "rpc.refused")]
        listing = "/anabranch.v1.AuthService/ListClients"
        logins = [r.details["error"] for r in await trail(front, "token.issue") if not r.succeeded]
        return doors == [("", listing), ("orders", listing)] and logins == ["QUOTA_EXCEEDED"]

    await until(written)


async def test_guesses_at_ever_new_clients_are_slowed_down_and_real_ones_get_in_elsewhere(
    tmp_path: Path,
) -> None:
    async with auth(tmp_path, login_burst=2, login_rate=0.01, trusted_proxies=("127.0.0.1",)) as it:

        async def guessed(name: str, address: str) -> Fault:
            request = pb.IssueTokenRequest(client_id=name, client_secret="wrong")
            told = (("x-forwarded-for", address),)
            return await refused(it.stub.IssueToken(request, metadata=told))

        for number in range(6):
            assert (await guessed(f"guess-{number}", "10.0.0.1")).reason == REJECTED
        slowed = await guessed("guess-6", "10.0.0.1")
        assert slowed.reason == errors_pb2.ERROR_REASON_QUOTA_EXCEEDED
        assert slowed.retry_after
        assert (await guessed("guess-7", "10.0.0.2")).reason == REJECTED
        assert await it.token()


async def test_every_act_is_in_both_trails(tmp_path: Path) -> None:
    files = tmp_path / "trail"
    async with auth(tmp_path, audit_dir=files) as front:
        for compromised in (False, True):
            request = pb.RotateSigningKeyRequest(compromised=compromised)
            await front.as_admin(front.stub.RotateSigningKey, request)
    written = b"".join(line for segment in segments_of(files) for line in lines_of(segment.path))
    for action in (b'"signing-key.rotate"', b'"signing-key.replace"'):
        assert action in written


class Mute:
    """An auth service that answers nothing once it is told to."""

    def __init__(self, keys: LocalKeys) -> None:
        self._keys = keys
        self.answers: Any = True

    async def exchange(self, api_key: str) -> str:
        if self.answers is None:
            await asyncio.get_running_loop().create_future()
        if not self.answers:
            raise Fault(errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "away", retry_after=1.0)
        return self._keys.token("generate", life=300)


@pytest.mark.parametrize("answers", [False, None])
async def test_a_key_with_a_live_token_waits_for_nobody_and_a_dead_one_is_unavailable(
    answers: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.chassis.authn._RENEWAL_PATIENCE_S", 0.01)
    ahead = 0.0
    keys = LocalKeys()
    mute = Mute(keys)
    verifier = Verifier(
        keys,
        issuer=ISSUER,
        audience="anabranch",
        clock=lambda: time.time() + ahead,
        exchange=mute,
    )
    key = compose("0" * 16, "a" * 43)
    known = await verifier.verify(key)
    mute.answers = answers
    ahead = 290.0
    assert await verifier.verify(key) is known
    assert await verifier.verify(key) is known
    if answers is False:
        ahead = 400.0
        with pytest.raises(Fault) as caught:
            await verifier.verify(key)
        assert caught.value.reason == errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    await verifier.close()
