"""Identities whose secrets lie in a directory: created, taken up when changed, else refused."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from anabranch.v1 import auth_pb2 as pb
from services.auth.app import running
from services.auth.planted import PLANTED, read_secrets
from services.auth.settings import Settings
from services.chassis.settings import Secret, SettingsError
from tests.support.auth import Front, bearer, until
from tests.support.auth_replicas import KEK, rows
from tests.support.databases import BOTH, empty_database
from tests.support.postgres import postgres_server

ADMIN = "abs_" + "a" * 43
ROUTER = "abs_" + "r" * 43


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture
def identities(tmp_path: Path) -> Path:
    directory = tmp_path / "identities"
    directory.mkdir()
    (directory / "admin").write_text(f"{ADMIN}\n")
    (directory / "router").write_text(ROUTER)
    return directory


@asynccontextmanager
async def served(tmp_path: Path, identities: Path, **changes: Any) -> AsyncIterator[Front]:
    settings = Settings(
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        registry="none",
        data_dir=tmp_path,
        bootstrap_identities_dir=identities,
        bootstrap_secret_file=tmp_path / "announced",
        drain_timeout=1.0,
        **changes,
    )
    async with running(settings) as host:
        front = Front(host.address, host.http_address, ADMIN, tmp_path)
        async with front.channel:
            yield front


async def logs_in(front: Front, client_id: str, secret: str) -> bool:
    request = pb.IssueTokenRequest(client_id=client_id, client_secret=secret)
    try:
        await front.stub.IssueToken(request)
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.UNAUTHENTICATED:
            raise
        return False
    return True


async def acts(front: Front, action: str) -> list[pb.AuditRecord]:
    found = await front.stub.QueryAudit(
        pb.QueryAuditRequest(action=action), metadata=bearer(await front.token())
    )
    return list(found.records)


async def test_identities_of_the_directory_log_in_with_fixed_rights(
    tmp_path: Path, identities: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with served(tmp_path, identities) as front:
        listed = await front.as_admin(front.stub.ListClients, pb.ListClientsRequest())
        found = {client.client_id: client for client in listed.clients}
        assert set(found) == {"admin", "router"}
        assert list(found["router"].scopes) == ["relay"]
        assert found["router"].tenant == "operators"
        assert list(found["admin"].scopes) == sorted(PLANTED["admin"].scopes)
        assert await logs_in(front, "router", ROUTER)
        assert sorted(one.target for one in await acts(front, "client.create")) == [
            "admin",
            "router",
        ]
    # Nobody needs an announcement of a secret that is known already.
    assert not (tmp_path / "announced").exists()
    shown = capfd.readouterr()
    assert ADMIN not in shown.out + shown.err
    assert ROUTER not in shown.out + shown.err


async def test_a_second_start_changes_nothing(tmp_path: Path, identities: Path) -> None:
    async with served(tmp_path, identities):
        pass
    async with served(tmp_path, identities) as front:
        assert await logs_in(front, "router", ROUTER)
        assert len(await acts(front, "client.create")) == 2
        assert not await acts(front, "client.rotate-secret")


async def test_a_changed_secret_is_taken_up_at_the_next_start_and_written_down(
    tmp_path: Path, identities: Path
) -> None:
    async with served(tmp_path, identities):
        pass
    (identities / "router").write_text("n" * 40)
    async with served(tmp_path, identities) as front:
        assert await logs_in(front, "router", "n" * 40)
        assert not await logs_in(front, "router", ROUTER)
        (act,) = await acts(front, "client.rotate-secret")
        assert (act.target, act.tenant) == ("router", "operators")


async def test_a_secret_that_changes_as_kubernetes_changes_it_is_taken_up_while_running(
    tmp_path: Path,
) -> None:
    """A mounted Secret is links into a directory that a link called ..data names."""
    volume = tmp_path / "volume"
    for version, secret in (("..1", ROUTER), ("..2", "n" * 40)):
        (volume / version).mkdir(parents=True)
        (volume / version / "admin").write_text(ADMIN)
        (volume / version / "router").write_text(secret)
    (volume / "..data").symlink_to("..1")
    for name in ("admin", "router"):
        (volume / name).symlink_to(f"..data/{name}")
    async with served(tmp_path, volume) as front:
        assert await logs_in(front, "router", ROUTER)
        (volume / "..data_tmp").symlink_to("..2")
        (volume / "..data_tmp").replace(volume / "..data")
        await until(lambda: logs_in(front, "router", "n" * 40))
        assert not await logs_in(front, "router", ROUTER)


async def test_a_weak_secret_that_comes_while_running_is_refused_and_changes_nothing(
    tmp_path: Path, identities: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path, identities) as front:
        (identities / "router").write_text("weak")

        async def said() -> bool:
            return any("not taken up" in record.message for record in caplog.records)

        with caplog.at_level(logging.ERROR):
            await until(said)
        assert await logs_in(front, "router", ROUTER)
        assert "weak" not in caplog.text.replace("weak secret", "")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("router", b"short\n", "router must hold at least 32 random characters"),
        ("router", b"x" * 300, "router must hold at most 256 characters"),
        ("router", b"one secret " * 4, "router must hold one secret"),
        ("router", b"\xff" * 40, "router is not UTF-8"),
        ("nobody", b"x" * 40, "nobody is no identity; there are admin, router, tester, demo"),
    ],
)
async def test_what_is_no_secret_of_an_identity_stops_the_start_with_its_reason(
    tmp_path: Path, identities: Path, name: str, content: bytes, complaint: str
) -> None:
    (identities / name).write_bytes(content)
    with pytest.raises(SettingsError, match=complaint) as stopped:
        async with served(tmp_path, identities):
            pass
    assert content.decode(errors="replace") not in str(stopped.value)


async def test_every_fault_is_named_at_once(tmp_path: Path, identities: Path) -> None:
    (identities / "admin").write_text("a")
    (identities / "router").write_text("b")
    with pytest.raises(SettingsError) as stopped:
        async with served(tmp_path, identities):
            pass
    assert len(stopped.value.problems) == 2


async def test_a_directory_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        async with served(tmp_path, tmp_path / "nowhere"):
            pass


async def test_without_an_admin_file_the_first_administrator_is_announced_as_ever(
    tmp_path: Path, identities: Path
) -> None:
    (identities / "admin").unlink()
    async with served(tmp_path, identities) as front:
        announced = (tmp_path / "announced").read_text().strip()
        assert await logs_in(front, "admin", announced)
        assert await logs_in(front, "router", ROUTER)


async def test_a_client_that_was_disabled_stays_so(tmp_path: Path, identities: Path) -> None:
    async with served(tmp_path, identities) as front:
        await front.as_admin(front.stub.DisableClient, pb.DisableClientRequest(client_id="router"))
    (identities / "router").write_text("n" * 40)
    async with served(tmp_path, identities) as front:
        assert not await logs_in(front, "router", "n" * 40)
        assert not await logs_in(front, "router", ROUTER)


async def test_a_client_of_another_tenant_that_has_the_id_is_left_alone(
    tmp_path: Path, identities: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A tenant's own administrator may choose any free id, and manages who has it."""
    async with served(tmp_path, identities) as front:
        made = await front.as_admin(
            front.stub.CreateClient,
            pb.CreateClientRequest(
                client_id="tester",
                tenant="shop",
                display_name="theirs",
                scopes=["generate"],
                models=["*"],
            ),
        )
    (identities / "tester").write_text("t" * 40)
    with caplog.at_level(logging.ERROR):
        async with served(tmp_path, identities) as front:
            assert not await logs_in(front, "tester", "t" * 40)
            assert await logs_in(front, "tester", made.client_secret)
            assert not await acts(front, "client.rotate-secret")
    assert "another tenant has its id" in caplog.text


async def test_a_directory_that_cannot_be_entered_is_refused_with_its_reason(
    tmp_path: Path, identities: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as root, whom no mode keeps out: so the system call says it."""

    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "is_file", refused)
    with pytest.raises(SettingsError, match="Permission denied"):
        read_secrets(identities)


@pytest.mark.parametrize("kind", BOTH[1:])
async def test_replicas_that_start_together_create_each_identity_once(
    kind: str, tmp_path: Path, identities: Path, request: pytest.FixtureRequest
) -> None:
    url = await empty_database(kind, tmp_path, request)
    everyone = asyncio.Barrier(3)

    async def replica(number: int) -> None:
        changes = {"database_url": Secret(url), "key_encryption_secret": KEK}
        async with served(tmp_path / str(number), identities, **changes) as front:
            await everyone.wait()
            assert await logs_in(front, "router", ROUTER)
            await everyone.wait()

    async with asyncio.TaskGroup() as tasks:
        for number in range(3):
            tasks.create_task(replica(number))
    created = await rows(url, "SELECT client_id FROM clients ORDER BY client_id")
    assert created == [("admin",), ("router",)]
