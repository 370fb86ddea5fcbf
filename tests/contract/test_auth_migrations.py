"""The auth database from release to release and back, over SQLite and a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from anabranch.v1 import errors_pb2
from services.auth.key_records import ApiKey
from services.auth.passwords import Passwords, new_secret
from services.auth.rule_records import Quota, Role, Tenant
from services.auth.store import Store, database_url
from services.chassis.audit.entry import Act
from services.chassis.quotas.rules import Unit
from services.chassis.settings import Secret
from tests.support.auth import refused
from tests.support.auth_replicas import follower, replicas, rows
from tests.support.databases import BOTH, empty_database
from tests.support.postgres import postgres_server

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


async def fill(store: Store) -> None:
    """Something in every table that the second release added, so that going back meets data."""
    key = ApiKey("0" * 16, "orders", "", ("generate",), ("*",), bytes(32), "admin", 1000.0)
    async with store.alone() as records:
        await records.keys.add(key)
        await records.keys.seal("api-key-pepper", b"sealed", 1000.0)
        await records.rules.set_role(Role("watcher", "", ("observe",), ()))
        await records.rules.set_quota(Quota("shop", "", "", Unit.TOKENS, 1, 60, 1))
        await records.rules.set_tenant(Tenant("shop"))
        await records.trail.append([Act("client.create")], 1000.0)


async def test_a_database_goes_from_release_to_release_and_back_with_what_it_holds(
    url: str, tmp_path: Path
) -> None:
    secret = new_secret()
    with Passwords() as passwords:
        secret_hash = await passwords.hash(secret)
    engine = create_async_engine(database_url(url))
    store = Store(engine)
    await store.upgrade("0001")
    first = (
        "INSERT INTO clients (client_id, tenant, display_name, scopes, token_life, secret_hash,"
        " created_at, disabled_at) VALUES ('{}', 'shop', 'Bücher', 'generate observe', 60, :hash,"
        " 1000.25, {})"
    )
    async with engine.begin() as connection:
        for client_id, disabled in (("orders", "NULL"), ("gone", "2000.5")):
            await connection.execute(text(first.format(client_id, disabled)), {"hash": secret_hash})
        await connection.execute(text("INSERT INTO revoked_tokens VALUES ('t-1', 'orders', 9e9)"))
    columns = "client_id, tenant, display_name, scopes, token_life, secret_hash, created_at"
    listing = f"SELECT {columns}, disabled_at FROM clients ORDER BY client_id"
    before = await rows(url, listing)
    assert [row[0] for row in before] == ["gone", "orders"]

    for revision in ("0002", "0001", "0002"):
        if revision == "0001":
            await store.downgrade(revision)
        else:
            await store.upgrade(revision)
            added = await rows(url, "SELECT roles, models, networks FROM clients")
            assert added == [("", "*", "")] * 2
            await fill(store)
        assert await rows(url, listing) == before
        assert await rows(url, "SELECT token_id, client_id FROM revoked_tokens") == [
            ("t-1", "orders")
        ]
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM sealed_secrets"))
    await store.close()

    async with replicas(url, tmp_path, 1) as (front,):
        token = await front.token("orders", secret)
        async with follower(front) as verifier:
            seen = await verifier.verify(token)
        assert (seen.scopes, seen.models, seen.networks) == (
            {"generate", "observe"},
            ("*",),
            (),
        )
        fault = await refused(front.token("gone", secret))
        assert fault.reason == errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED
