"""Replicas of the auth service on one database: a SQLite file, and a real PostgreSQL.

What one does, the others honour; what they do at once is done once. No test decides by a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy.engine import make_url

from anabranch.v1 import auth_pb2 as pb
from anabranch.v1 import errors_pb2
from services.chassis.authn import Verifier
from services.chassis.errors import Fault
from services.chassis.principal import Principal
from services.chassis.settings import Secret
from tests.support.auth import Front, bearer, refused
from tests.support.auth_replicas import follower, replicas, rows
from tests.support.cuttable import cuttable
from tests.support.databases import BOTH, empty_database, needs_postgres
from tests.support.postgres import postgres_server
from tests.support.waiting import until

KEK = Secret("k" * 32)
UNAVAILABLE = errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer to let a connection in than a caller would wait for."""
    monkeypatch.setattr("services.auth.store._CONNECT_SECONDS", 60.0)
    monkeypatch.setattr("services.auth.store._BUSY_SECONDS", 60.0)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(params=BOTH)
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    return await empty_database(request.param, tmp_path, request)


@pytest.fixture
async def pair(url: str, tmp_path: Path) -> AsyncIterator[list[Front]]:
    async with replicas(url, tmp_path) as fronts:
        yield fronts


async def trail(front: Front) -> list[Any]:
    """Every record, oldest first, once each has been checked against the one before it."""
    records: list[Any] = []
    request = pb.QueryAuditRequest(page_size=1000)
    while True:
        page = await front.as_admin(front.stub.QueryAudit, request)
        records += page.records
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    records.reverse()
    previous = bytes(32)
    for number, record in enumerate(records, 1):
        assert (record.sequence, record.previous_hash) == (number, previous)
        assert record.hash == hashlib.sha256(previous + record.canonical).digest()
        previous = record.hash
    return records


async def new_key(front: Front, client_id: str) -> Any:
    request = pb.CreateApiKeyRequest(client_id=client_id)
    return await front.as_admin(front.stub.CreateApiKey, request)


async def is_refused(verifier: Verifier, credential: str) -> bool:
    try:
        await verifier.verify(credential)
    except Fault as fault:
        return fault.reason == errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED
    return False


async def test_replicas_that_start_at_once_make_one_of_everything(url: str, tmp_path: Path) -> None:
    async with replicas(url, tmp_path, 4) as fronts:
        assert re.fullmatch(r"abs_[\w-]{43}", fronts[0].secret), "one was shown, and only one"
        assert await rows(url, "SELECT client_id FROM clients") == [("admin",)]
        assert len(await rows(url, "SELECT kid FROM signing_keys")) == 1
        names = sorted(await rows(url, "SELECT name FROM sealed_secrets"))
        assert names == [("api-key-pepper",), ("audit-key",)]
        sets = [(await f.stub.GetJwks(pb.GetJwksRequest())).jwks_json for f in fronts]
        assert len(set(sets)) == 1
        heads = {
            (await f.as_admin(f.stub.QueryAudit, pb.QueryAuditRequest())).head.public_key
            for f in fronts
        }
        assert len(heads) == 1
        # All hash with the same pepper.
        key = (await new_key(fronts[0], "admin")).api_key
        for front in fronts:
            assert (await front.stub.ExchangeApiKey(pb.ExchangeApiKeyRequest(api_key=key))).scopes
        created = [r.target for r in await trail(fronts[1]) if r.action == "client.create"]
        assert created == ["admin"]


async def test_rotations_at_once_publish_one_key(pair: list[Front], url: str) -> None:
    metadata = bearer(await pair[0].token())
    asked = [
        front.stub.RotateSigningKey(pb.RotateSigningKeyRequest(), metadata=metadata)
        for front in pair * 4
    ]
    kids = {answer.kid for answer in await asyncio.gather(*asked)}
    assert len(kids) == 1
    assert len(await rows(url, "SELECT kid FROM signing_keys")) == 2
    kid = kids.pop()

    async def both_publish_it() -> bool:
        sets = [(await f.stub.GetJwks(pb.GetJwksRequest())).jwks_json for f in pair]
        return all(kid in {key["kid"] for key in json.loads(jwks)["keys"]} for jwks in sets)

    await until(both_publish_it)


async def test_what_all_write_down_at_once_is_one_trail(pair: list[Front]) -> None:
    metadata = bearer(await pair[0].token())

    async def work(number: int) -> None:
        front, client_id = pair[number % 2], f"c-{number:03}"
        request = pb.CreateClientRequest(client_id=client_id, tenant="shop", scopes=["generate"])
        created = await front.stub.CreateClient(request, metadata=metadata)
        await front.token(client_id, created.client_secret)
        role = pb.SetRoleRequest(role=pb.AccessRole(name="busy", scopes=["observe"]))
        await front.stub.SetRole(role, metadata=metadata)
        quota = pb.Quota(tenant="shop", unit=pb.QUOTA_UNIT_TOKENS, limit=number + 1)
        quota.period.FromSeconds(60)
        await front.stub.SetQuota(pb.SetQuotaRequest(quota=quota), metadata=metadata)
        request = pb.DisableClientRequest(client_id=client_id)
        await front.stub.DisableClient(request, metadata=metadata)

    count = 30
    await asyncio.gather(*(work(number) for number in range(count)))
    names = {f"c-{number:03}" for number in range(count)}
    logins: Counter[str] = Counter()

    async def every_login_is_there() -> bool:
        nonlocal logins
        acts = [(r.action, r.target) for r in await trail(pair[1])]
        logins = Counter(target for action, target in acts if action == "token.issue")
        return names <= logins.keys()

    await until(every_login_is_there)
    assert {name: logins[name] for name in names} == dict.fromkeys(names, 1)
    acts = Counter((r.action, r.target) for r in await trail(pair[0]))
    for name in names:
        assert (acts["client.create", name], acts["client.disable", name]) == (1, 1)
    assert acts["role.set", "busy"] == count
    assert acts["quota.set", "tokens/shop//"] == count


async def test_a_key_of_one_works_at_the_other_until_it_is_revoked_at_either(
    pair: list[Front],
) -> None:
    one, two = pair
    secret = await one.new_client("orders")
    made = await new_key(one, "orders")
    async with follower(two) as verifier:
        principal = await verifier.verify(made.api_key)
        assert (principal.client_id, principal.api_key_id) == ("orders", made.info.key_id)
        token = await two.token("orders", secret)
        assert (await verifier.verify(token)).api_key_id == ""

        await one.as_admin(one.stub.RevokeApiKey, pb.RevokeApiKeyRequest(key_id=made.info.key_id))
        request = pb.ExchangeApiKeyRequest(api_key=made.api_key)
        fault = await refused(two.stub.ExchangeApiKey(request))
        assert fault.reason == errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED
        await until(lambda: is_refused(verifier, made.api_key))
        assert (await verifier.verify(token)).client_id == "orders", "its other tokens are as good"

        await one.as_admin(one.stub.RevokeToken, pb.RevokeTokenRequest(token=token))
        assert not await two.active(token)
        await until(lambda: is_refused(verifier, token))

        another = await one.token("orders", secret)
        assert (await verifier.verify(another)).client_id == "orders"
        await one.as_admin(one.stub.DisableClient, pb.DisableClientRequest(client_id="orders"))
        await until(lambda: is_refused(verifier, another))


async def test_a_role_that_one_changes_is_in_the_next_tokens_of_the_other(
    pair: list[Front],
) -> None:
    one, two = pair
    role = pb.AccessRole(name="watcher", scopes=["observe"], models=["sim-*"])
    await one.as_admin(one.stub.SetRole, pb.SetRoleRequest(role=role))
    request = pb.CreateClientRequest(client_id="orders", tenant="shop", roles=["watcher"])
    secret = (await one.as_admin(one.stub.CreateClient, request)).client_secret
    async with follower(one) as verifier:

        async def given_by_two() -> Principal:
            return await verifier.verify(await two.token("orders", secret))

        async def follows(scopes: set[str], models: tuple[str, ...]) -> None:
            async def so() -> bool:
                seen = await given_by_two()
                return (seen.scopes, seen.models) == (scopes, models)

            await until(so)

        await follows({"observe"}, ("sim-*",))
        role = pb.AccessRole(name="watcher", scopes=["generate"], models=["cloud-a"])
        await one.as_admin(one.stub.SetRole, pb.SetRoleRequest(role=role))
        await follows({"generate"}, ("cloud-a",))
        quota = pb.Quota(tenant="shop", unit=pb.QUOTA_UNIT_REQUESTS, limit=7)
        quota.period.FromSeconds(60)
        await one.as_admin(one.stub.SetQuota, pb.SetQuotaRequest(quota=quota))

        async def limited() -> bool:
            return [rule.limit for rule in (await given_by_two()).quotas] == [7]

        await until(limited)


@pytest.mark.parametrize("kind", [pytest.param("postgresql", marks=needs_postgres)])
async def test_without_their_database_replicas_refuse_and_what_they_issued_stays_good(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server = make_url(await empty_database(kind, tmp_path, request))
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(cuttable(f"{server.host}:{server.port}"))
        host, _, port = proxy.address.rpartition(":")
        url = server.set(host=host, port=int(port)).render_as_string(hide_password=False)
        one, two = await stack.enter_async_context(replicas(url, tmp_path))
        verifier = await stack.enter_async_context(follower(two))
        secret = await one.new_client("orders")
        key = (await new_key(one, "orders")).api_key
        token, admin = await one.token("orders", secret), bearer(await one.token())
        await verifier.verify(token)
        await verifier.verify(key)

        proxy.close()
        create = pb.CreateClientRequest(client_id="late", tenant="shop", scopes=["generate"])
        for front in (one, two):
            introspect = pb.IntrospectTokenRequest(token=token)
            asked = [
                front.stub.CreateClient(create, metadata=admin),
                front.stub.IntrospectToken(introspect, metadata=admin),
                front.stub.RevokeToken(pb.RevokeTokenRequest(token=token), metadata=admin),
                front.stub.ExchangeApiKey(pb.ExchangeApiKeyRequest(api_key=key)),
                front.token("orders", secret),
            ]
            for call in asked:
                fault = await refused(call)
                assert (fault.code, fault.reason) == (grpc.StatusCode.UNAVAILABLE, UNAVAILABLE)
                assert fault.retry_after
            # Listed from memory, by a credential that is checked in memory.
            assert (await front.stub.ListRoles(pb.ListRolesRequest(), metadata=admin)).roles
        assert (await verifier.verify(token)).client_id == "orders"
        assert (await verifier.verify(key)).client_id == "orders"

        proxy.restore()

        async def back() -> bool:
            try:
                await two.token("orders", secret)
            except grpc.aio.AioRpcError:
                return False
            return True

        await until(back)
        assert await one.active(token)
        await one.as_admin(one.stub.RevokeToken, pb.RevokeTokenRequest(token=token))
        await until(lambda: is_refused(verifier, token))
        assert "late" not in {r.target for r in await trail(two) if r.succeeded}
