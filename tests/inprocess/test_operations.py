"""Every process is asked how much it logs, and told otherwise, by operators alone."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from anabranch import AccessDeniedError, AsyncClient, Client, InvalidRequestError
from anabranch.cli import main
from anabranch.v1 import auth_pb2, auth_pb2_grpc
from services.chassis.host import Host
from services.chassis.settings import Secret
from tests.support.audit import acts_in
from tests.support.auth import bearer, until
from tests.support.inprocess import Cluster, cluster
from tests.support.provider import KEY, routes_file, simulator


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    """The services of a test are one process, whose level is the test's again afterwards."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.INFO)
    yield
    root.setLevel(before)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as running:
        yield running


async def hosts_of(running: Cluster, directory: Path, provider: str) -> dict[str, Host]:
    routes = routes_file(directory, provider)
    cloud = await running.add_cloud(routes, api_keys=Secret(f"simulator={KEY}"))
    assert running.router is not None
    engine = running.engines[0].host
    return {"router": running.router, "engine": engine, "cloud": cloud, "auth": running.auth}


async def test_every_process_has_a_level_that_operators_change(running, tmp_path, caplog):
    async with simulator(KEY) as provider:
        hosts = await hosts_of(running, tmp_path, provider.url)
        secret = await running.new_client("viewer", "observe", tenant="operators")
        tokens = {"admin": await running.token(), "viewer": await running.token("viewer", secret)}
        level = "info"
        for host, to in zip(hosts.values(), ("debug", "error", "warning", "info"), strict=True):
            async with (
                AsyncClient(host.address, token=tokens["admin"]) as operator,
                AsyncClient(host.address, token=tokens["viewer"]) as viewer,
            ):
                assert await viewer.log_level() == level
                with pytest.raises(AccessDeniedError):
                    await viewer.set_log_level(to)
                for bad in ("", "DEBUG", "trace"):
                    with pytest.raises(InvalidRequestError) as invalid:
                        await operator.set_log_level(bad)
                    assert [v.field for v in invalid.value.violations] == ["level"]
                assert await operator.set_log_level(to) == level
                assert await operator.log_level() == to
                assert logging.getLogger().getEffectiveLevel() == getattr(logging, to.upper())
                level = to
    told = [r for r in caplog.records if r.message == "log level changed"]
    assert [(r.to, r.levelname) for r in told][:1] == [("debug", "WARNING")]


async def test_a_change_is_in_the_audit_trails(tmp_path):
    directory = tmp_path / "audit"
    async with cluster(tmp_path, router={"audit_dir": directory}) as running:
        token = await running.token()
        assert running.router is not None
        for host in (running.router, running.auth):
            async with AsyncClient(host.address, token=token) as operator:
                await operator.set_log_level("info")
        changes = [a for a in acts_in(directory) if a.action == "service.update_log_level"]
        assert [a.details.get("phase") for a in changes] == ["begun", "ended"]
        assert changes[1].details["previous_level"] == "info"
        assert (changes[1].client_id, changes[1].target) == ("admin", "info")

        async def in_the_database() -> bool:
            async with running.channel(running.auth) as channel:
                found = await auth_pb2_grpc.AuthServiceStub(channel).QueryAudit(
                    auth_pb2.QueryAuditRequest(action="service.update_log_level"),
                    metadata=bearer(token),
                )
            return [(e.client_id, e.target, e.succeeded) for e in found.records] == [
                ("admin", "info", True)
            ]

        await until(in_the_database)


async def test_blocking_code_and_the_command_line_do_it_too(running):
    token = await running.token()
    address = running.engines[0].host.address

    def run(*arguments: str) -> Result:
        clean = {name: None for name in os.environ if name.startswith("ANABRANCH_")}
        environment = {**clean, "ANABRANCH_TOKEN": token}
        return CliRunner().invoke(main, ["--target", address, *arguments], env=environment)

    def people() -> None:
        with Client(address, token=token) as client:
            assert client.set_log_level("warning") == "info"
            assert client.log_level() == "warning"
        assert run("log-level").stdout == "warning\n"
        assert run("log-level", "info").stdout == "info, before: warning\n"
        assert json.loads(run("log-level", "--json").stdout) == {"level": "info"}
        changed = run("log-level", "error", "--json")
        assert json.loads(changed.stdout) == {"level": "error", "previous_level": "info"}
        assert run("log-level", "loud").exit_code == 2

    await asyncio.to_thread(people)
