"""What every database of the auth service must do: one suite over SQLite and a real PostgreSQL."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from anabranch.v1 import errors_pb2
from services.auth.core.rotation import RotationPolicy
from services.auth.key_records import ApiKey
from services.auth.keyring import Keyring
from services.auth.models import metadata
from services.auth.records import AlreadyThere, Client, StoredKey
from services.auth.resealing import reseal
from services.auth.store import Store, database_url, open_store
from services.auth.vault import Vault, VaultError
from services.chassis.encryption.keychain import Keychain
from services.chassis.errors import Fault
from tests.support.auth import sealed_before_keychains
from tests.support.databases import BOTH, empty_database
from tests.support.postgres import binaries, postgres_server
from tests.support.waiting import BOUND_S, until

CLIENT = Client("orders", "shop", "Orders", ("generate",), None, "$argon2id$x", 1000.25)
POLICY = RotationPolicy(period=86_400, publish_ahead=900)
HAVE_POSTGRES = binaries() is not None


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


async def rotated(store: Store, ring: Keyring) -> StoredKey:
    async with store.alone() as records:
        key = await ring.rotate(records)
    await ring.learn()
    return key


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async with open_store(database_url(url)) as opened:
        yield opened


async def test_a_client_comes_back_as_it_was_stored(store: Store) -> None:
    async with store.writing() as records:
        await records.add_client(CLIENT)
    async with store.reading() as records:
        assert await records.client("orders") == CLIENT
        assert await records.client("nobody") is None


async def test_a_key_comes_back_with_its_own_client_and_an_unknown_one_with_none(
    store: Store,
) -> None:
    key = ApiKey(
        *("k" * 16, CLIENT.client_id, "Key", ("relay",), ("model-*",), b"mac", "admin", 2000.5),
        expires_at=3000.0,
        tenant=CLIENT.tenant,
    )
    other = replace(CLIENT, client_id="other", tenant="else")
    async with store.writing() as records:
        for client in (CLIENT, other):
            await records.add_client(client)
        await records.keys.add(key)
    async with store.reading() as records:
        assert await records.key_and_client(key.key_id) == (key, CLIENT)
        assert await records.key_and_client("u" * 16) is None


async def test_a_second_client_of_the_same_id_is_refused_and_the_first_is_kept(
    store: Store,
) -> None:
    async with store.writing() as records:
        await records.add_client(CLIENT)
    with pytest.raises(AlreadyThere):
        async with store.writing() as records:
            await records.add_client(replace(CLIENT, tenant="thief"))
    async with store.reading() as records:
        found = await records.client("orders")
    assert found == CLIENT


async def test_a_failed_block_leaves_no_trace(store: Store) -> None:
    async def fail() -> None:
        async with store.writing() as records:
            await records.add_client(CLIENT)
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    async with store.reading() as records:
        assert not await records.any_client()


async def test_pages_are_in_byte_order_whatever_the_database_collates(store: Store) -> None:
    ids = ["a-b", "a0", "ab", "a-", "z", "0", "aa"]
    async with store.writing() as records:
        for client_id in ids:
            await records.add_client(replace(CLIENT, client_id=client_id))
    listed: list[str] = []
    async with store.reading() as records:
        while page := await records.clients_after(listed[-1] if listed else "", 2):
            listed += [client.client_id for client in page]
    assert listed == sorted(ids)


async def test_a_change_touches_only_what_is_given(store: Store) -> None:
    async with store.writing() as records:
        await records.add_client(CLIENT)
        changed = await records.change_client("orders", scopes=("relay", "generate"))
        assert changed == replace(CLIENT, scopes=("generate", "relay"))
        assert await records.change_client("nobody", display_name="x") is None


async def test_a_disabled_client_is_listed_by_when_and_keeps_its_first_time(store: Store) -> None:
    async with store.writing() as records:
        await records.add_client(CLIENT)
        assert await records.disable_client("orders", 2000.0)
        assert await records.disable_client("orders", 3000.0)
        assert not await records.disable_client("nobody", 2000.0)
    async with store.reading() as records:
        assert await records.clients_disabled_since(2000.0) == ["orders"]
        assert await records.clients_disabled_since(2000.5) == []
        found = await records.client("orders")
    assert found is not None
    assert found.disabled


async def test_revocations_repeat_without_harm_and_are_forgotten_in_time(store: Store) -> None:
    async with store.writing() as records:
        await records.revoke_token("one", "orders", 100.0)
        await records.revoke_token("one", "orders", 100.0)
        await records.revoke_token("two", "orders", 200.0)
    async with store.writing() as records:
        assert await records.is_revoked("one")
        assert await records.revoked_tokens(150.0) == ["two"]
        assert await records.forget_revocations(150.0) == 1
        assert not await records.is_revoked("one")
        assert await records.is_revoked("two")


async def test_migrations_go_down_to_nothing_and_up_again(store: Store) -> None:
    async with store.writing() as records:
        await records.add_client(CLIENT)
    await store.downgrade("base")
    await store.upgrade()
    async with store.writing() as records:
        assert not await records.any_client()
        await records.add_client(CLIENT)


async def test_the_migrations_build_exactly_the_tables_that_the_code_expects(url: str) -> None:
    async with open_store(database_url(url)):
        pass
    engine = create_async_engine(database_url(url))
    async with engine.connect() as connection:
        difference = await connection.run_sync(
            lambda c: compare_metadata(MigrationContext.configure(c), metadata)
        )
    await engine.dispose()
    assert difference == []


async def test_replicas_that_start_together_migrate_once_and_share_one_key(url: str) -> None:
    vault = Vault.under("v" * 32)

    async def replica() -> str:
        async with open_store(database_url(url)) as own:
            ring = Keyring(own, vault, POLICY, lambda: 5000.0)
            await ring.refresh()
            return ring.signer().kid

    kids = await asyncio.gather(*(replica() for _ in range(4)))
    assert len(set(kids)) == 1


async def test_a_new_file_that_another_replica_is_busy_with_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "auth.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        opening = asyncio.create_task(_open_and_close(database_url(f"sqlite:///{file}")))
        done, _ = await asyncio.wait([opening], timeout=0.3)
        assert not done, opening
        other.execute("COMMIT")
        await opening


async def _open_and_close(url: URL) -> None:
    async with open_store(url):
        pass


async def test_keys_are_sealed_in_the_database_and_open_only_with_their_secret(
    store: Store,
) -> None:
    ring = Keyring(store, Vault.under("v" * 32), POLICY, lambda: 5000.0)
    await ring.refresh()
    async with store.reading() as records:
        (stored,) = await records.signing_keys()
    private = ring.signer().private_key.private_bytes_raw()
    assert private not in stored.sealed_private_key
    with pytest.raises(VaultError):
        await Keyring(store, Vault.under("w" * 32), POLICY, lambda: 5000.0).refresh()


SECRET = "v" * 32
OLD, NEW = {"2026-05": bytes(range(32))}, {"2026-11": bytes(range(32, 64))}


async def sealed_keys(store: Store) -> dict[str, bytes]:
    async with store.reading() as records:
        return {key.kid: key.sealed_private_key for key in await records.signing_keys()}


async def private_key(store: Store, vault: Vault) -> tuple[str, bytes]:
    """What a replica that starts with this vault signs with."""
    await reseal(store, vault)
    ring = Keyring(store, vault, POLICY, lambda: 5000.0)
    await ring.refresh()
    return ring.signer().kid, ring.signer().private_key.private_bytes_raw()


async def test_a_database_from_before_keychains_is_moved_to_one_and_then_from_key_to_key(
    store: Store,
) -> None:
    kid, private = await private_key(store, Vault.under(SECRET))
    async with store.writing() as records:
        await records.replace_sealed_key(kid, sealed_before_keychains(SECRET, private, kid=kid))

    old = Keychain(OLD, "2026-05")
    with pytest.raises(VaultError, match="key_encryption_secret is needed once more"):
        await reseal(store, Vault(old))
    assert (await sealed_keys(store))[kid][:1] == b"\x01", "a start that fails changes nothing"

    first_to_rotated = [
        Vault.under(SECRET),
        Vault(old.and_secret(SECRET), SECRET),
        Vault(old),
        Vault(Keychain(OLD | NEW, "2026-05")),
        Vault(Keychain(OLD | NEW, "2026-11")),
        Vault(Keychain(NEW, "2026-11")),
    ]
    for vault in first_to_rotated:
        assert await private_key(store, vault) == (kid, private)
        (sealed,) = (await sealed_keys(store)).values()
        assert vault.is_current(sealed)
        assert private not in sealed


async def test_a_key_that_is_removed_too_early_is_missed_by_name(store: Store) -> None:
    await private_key(store, Vault(Keychain(OLD, "2026-05")))
    before = await sealed_keys(store)
    with pytest.raises(VaultError, match="'2026-05'"):
        await reseal(store, Vault(Keychain(NEW, "2026-11")))
    assert await sealed_keys(store) == before


async def test_what_is_current_is_not_written_again(store: Store) -> None:
    vault = Vault(Keychain(OLD, "2026-05"))
    await private_key(store, vault)
    before = await sealed_keys(store)
    assert await reseal(store, vault) == 0
    assert await sealed_keys(store) == before


async def test_replicas_that_start_together_reseal_once(url: str) -> None:
    async with open_store(database_url(url)) as first:
        kid, private = await private_key(first, Vault(Keychain(OLD, "2026-05")))

    async def replica() -> int:
        async with open_store(database_url(url)) as own:
            vault = Vault(Keychain(OLD | NEW, "2026-11"))
            moved = await reseal(own, vault)
            assert await private_key(own, vault) == (kid, private)
            return moved

    assert sorted(await asyncio.gather(*(replica() for _ in range(4)))) == [0, 0, 0, 1]


async def test_a_replica_that_was_not_told_of_a_key_goes_on_with_the_keys_it_has(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    late = Keyring(store, Vault(Keychain(OLD, "2026-05")), POLICY, lambda: 5000.0)
    await late.refresh()
    kid = late.signer().kid
    early = Keyring(store, Vault(Keychain(OLD | NEW, "2026-11")), POLICY, lambda: 5000.0)
    await early.refresh()
    published = (await rotated(store, early)).kid

    with pytest.raises(VaultError, match="'2026-11'"):
        await late.refresh()

    async def told_so() -> bool:
        return "keys could not be refreshed" in caplog.text

    keeping = asyncio.create_task(late.keep_fresh(0.001))
    await until(told_so, during=[keeping])
    assert not keeping.done()
    assert late.signer().kid == kid
    assert published not in late.jwks
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_a_rotation_is_published_first_signs_later_and_ends_the_old_key_last(
    store: Store,
) -> None:
    now = 5000.0
    ring = Keyring(store, Vault.under("v" * 32), POLICY, lambda: now)
    await ring.refresh()
    old = ring.signer().kid
    new = await rotated(store, ring)
    assert (await rotated(store, ring)).kid == new.kid
    assert ring.signer().kid == old
    assert new.kid in ring.jwks
    now += POLICY.publish_ahead
    assert ring.signer().kid == new.kid
    await ring.refresh()
    assert old in ring.jwks
    now += 1000
    await ring.refresh()
    assert old not in ring.jwks


async def test_one_block_alone_waits_for_the_other(store: Store) -> None:
    order: list[str] = []
    inside = asyncio.Event()

    async def first() -> None:
        async with store.alone() as records:
            inside.set()
            await records.add_client(CLIENT)
            await asyncio.sleep(0.05)
            order.append("first")

    async def second() -> None:
        await inside.wait()
        async with store.alone() as records:
            order.append("second" if await records.any_client() else "too early")

    await asyncio.gather(first(), second())
    assert order == ["first", "second"]


async def test_an_unreachable_database_is_one_fault_that_names_no_password() -> None:
    url = database_url("postgresql://someone:hunter2@127.0.0.1:1/nothing")
    with pytest.raises(Fault) as caught:
        async with open_store(url):
            pass
    assert caught.value.reason == errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert "hunter2" not in caught.value.message


@pytest.mark.cluster
@pytest.mark.skipif(not HAVE_POSTGRES, reason="no PostgreSQL server installed")
async def test_a_connection_that_is_cut_is_one_fault_and_the_next_one_works(postgres: str) -> None:
    async with open_store(database_url(postgres)) as store:

        async def read_while_cut() -> None:
            async with store.reading() as records:
                plain = make_url(postgres).set(drivername="postgresql")
                other = await asyncpg.connect(plain.render_as_string(hide_password=False))
                await other.execute(
                    "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
                    " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
                )
                await other.close()
                await records.any_client()

        with pytest.raises(Fault) as caught:
            await read_while_cut()
        assert caught.value.reason == errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
        async with store.reading() as records:
            assert not await records.any_client()


@pytest.mark.cluster
@pytest.mark.skipif(not HAVE_POSTGRES, reason="no PostgreSQL server installed")
async def test_a_wrong_password_is_one_fault_that_names_none(postgres: str) -> None:
    url = make_url(postgres).set(password="hunter2")
    with pytest.raises(Fault) as caught:
        async with open_store(database_url(url.render_as_string(hide_password=False))):
            pass
    assert "hunter2" not in caught.value.message + str(caught.value.__cause__)


async def test_a_failing_announcement_is_not_taken_for_the_database(store: Store) -> None:
    async def announce() -> None:
        async with store.alone() as records:
            await records.add_client(CLIENT)
            raise PermissionError("no such place")

    with pytest.raises(PermissionError):
        await announce()
    async with store.reading() as records:
        assert not await records.any_client()


async def test_callers_that_go_away_in_the_middle_leave_the_store_usable(store: Store) -> None:
    """Each cancelled at another await, as when a deadline passes or a connection breaks."""

    async def write(name: str) -> None:
        async with store.writing() as records:
            await records.add_client(replace(CLIENT, client_id=name))
            await records.clients_after("", 10)

    for steps in range(40):
        task = asyncio.create_task(write(f"gone-{steps}"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(BOUND_S):
        await asyncio.gather(*(write(f"stays-{i}") for i in range(5)))
    async with store.reading() as records:
        found = await records.clients_after("stays", 100)
    assert len(found) == 5
