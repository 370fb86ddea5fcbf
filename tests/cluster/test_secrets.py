"""A cluster that logs all it can, used well and badly: its secrets stay where they belong."""

import asyncio
import re
import secrets
import urllib.request
from collections.abc import Awaitable
from pathlib import Path

import grpc
import pytest

from anabranch.v1 import admin_pb2, admin_pb2_grpc, auth_pb2, auth_pb2_grpc, model_pb2_grpc
from anabranch.v1 import generation_pb2 as pb
from tests.support.auth import bearer, real_key
from tools import identities
from tools.cluster import Cluster, EngineKind, EngineSpec
from tools.cluster.recipes import PROVIDER_KEY, SIM_MODEL

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

OK = grpc.StatusCode.OK
_TOKEN = re.compile(r"eyJ[\w-]{10,}\.[\w-]{10,}")


async def outcome(call: Awaitable[object]) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def ask(residency: pb.Residency) -> pb.GenerateRequest:
    content = [pb.ContentPart(text="hello")]
    return pb.GenerateRequest(
        model=SIM_MODEL,
        messages=[pb.Message(role=pb.ROLE_USER, content=content)],
        sampling=pb.Sampling(max_tokens=3),
        routing=pb.Routing(residency=residency),
    )


async def use(cluster: Cluster, wrong: str) -> list[str]:
    """Every path that a credential takes, rightly and wrongly; the tokens that were used."""
    token, admin = await cluster.token("demo"), await cluster.token(identities.ADMIN)
    async with (
        grpc.aio.insecure_channel(cluster.auth) as auth_channel,
        grpc.aio.insecure_channel(cluster.router) as channel,
    ):
        auth = auth_pb2_grpc.AuthServiceStub(auth_channel)
        model = model_pb2_grpc.ModelServiceStub(channel)
        control = admin_pb2_grpc.RouterAdminServiceStub(channel)
        for residency in (pb.RESIDENCY_LOCAL_ONLY, pb.RESIDENCY_CLOUD_ONLY):
            assert await outcome(model.Generate(ask(residency), metadata=bearer(token))) is OK
        refused = [
            model.Generate(ask(pb.RESIDENCY_LOCAL_FIRST), metadata=bearer(wrong)),
            model.Generate(ask(pb.RESIDENCY_LOCAL_FIRST), metadata=bearer(token[:-9])),
            model.Generate(
                ask(pb.RESIDENCY_LOCAL_FIRST), metadata=[("authorization", f"Basic {wrong}")]
            ),
            control.ListBackends(admin_pb2.ListBackendsRequest(), metadata=bearer(token)),
            auth.IssueToken(auth_pb2.IssueTokenRequest(client_id="demo", client_secret=wrong)),
            auth.IssueToken(auth_pb2.IssueTokenRequest(client_id=wrong, client_secret=wrong)),
            auth.RevokeToken(auth_pb2.RevokeTokenRequest(token=admin), metadata=bearer(token)),
        ]
        assert OK not in [await outcome(call) for call in refused]
        await auth.RevokeToken(auth_pb2.RevokeTokenRequest(token=token), metadata=bearer(token))
    return [token, admin]


def metrics(cluster: Cluster) -> str:
    addresses = [p.record.http for p in cluster.processes.values() if p.record.http]
    assert len(addresses) == 4
    return "".join(
        urllib.request.urlopen(f"http://{address}/metrics").read().decode() for address in addresses
    )


def processes(cluster: Cluster) -> str:
    """What other users of the machine may read of them, and what their children inherit."""
    members = [m for p in cluster.processes.values() for m in p.record.members()]
    assert len(members) >= len(cluster.processes)
    return "".join(f"{member.cmdline()} {member.environ()}" for member in members)


def loose(directory: Path, secret: str) -> list[Path]:
    """Files with the secret that others than their owner may read."""
    return [
        path
        for path in directory.rglob("*")
        if path.is_file() and path.stat().st_mode & 0o077 and secret.encode() in path.read_bytes()
    ]


async def test_secrets_are_in_no_log_no_metric_no_command_line_and_no_loose_file(tmp_path):
    wrong = "wr0ng" + secrets.token_hex(16)
    async with Cluster(
        tmp_path, engines=(EngineSpec("sim-1", EngineKind.SIM, SIM_MODEL),), log_level="debug"
    ) as cluster:
        tokens = await use(cluster, wrong)
        seen = processes(cluster)
        measured = await asyncio.to_thread(metrics, cluster)
    _, private = real_key(tmp_path / "auth")
    known = {
        **cluster.credentials,
        "provider": PROVIDER_KEY,
        "key of keys": (tmp_path / "auth/auth.db.key").read_text().strip(),
        "signing key": private.private_bytes_raw().hex(),
        "what was tried": wrong,
        **{f"token {number}": token for number, token in enumerate(tokens)},
    }
    logs = {path.name: path.read_text() for path in cluster.logs.iterdir()}
    assert '"level":"debug"' in "".join(logs.values())
    for where, text in {**logs, "metrics": measured, "processes": seen}.items():
        found = [name for name, secret in known.items() if secret in text]
        assert not found, f"{where} holds {found}"
        assert not _TOKEN.search(text), where
    for name, secret in known.items():
        assert not loose(tmp_path, secret), name
