"""Auth services behind a real gRPC port, for tests of what administers one: in memory, and real.

`Service` is what a test knows of either.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

import grpc

from anabranch.v1 import auth_pb2 as pb
from anabranch.v1 import auth_pb2_grpc
from services.chassis.errors import Fault, to_status
from tests.support.fake_auth import FakeAuth


@dataclass
class Service:
    """A running auth service and its first administrator."""

    target: str
    client_id: str
    client_secret: str
    fake: FakeAuth | None = None
    """What stands behind it, for the few tests that look there."""

    @property
    def environment(self) -> dict[str, str]:
        return {
            "ANABRANCH_AUTH_TARGET": self.target,
            "ANABRANCH_CLIENT_ID": self.client_id,
            "ANABRANCH_CLIENT_SECRET": self.client_secret,
        }


def _front(fake: FakeAuth) -> auth_pb2_grpc.AuthServiceServicer:
    """The fake with authentication and statuses around each RPC."""
    front = auth_pb2_grpc.AuthServiceServicer()
    for name in pb.DESCRIPTOR.services_by_name["AuthService"].methods_by_name:

        def call(request, context, name=name):
            try:
                return getattr(fake, name)(request, fake.enter(name, request, context))
            except Fault as fault:
                status = to_status(fault)
                context.set_trailing_metadata(
                    (("grpc-status-details-bin", status.SerializeToString()),)
                )
                code = next(c for c in grpc.StatusCode if c.value[0] == status.code)
                context.abort(code, status.message)

        setattr(front, name, call)
    return front


@contextlib.contextmanager
def fake_service(
    credentials: grpc.ServerCredentials | None = None,
) -> Iterator[Service]:
    """A fake on a loopback port. Blocking gRPC: the clients' own loop stays the only one."""
    fake = FakeAuth()
    secret = fake.add_client("admin", "platform", ["admin", "audit", "generate"])
    with futures.ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads, options=(("grpc.so_reuseport", 0),))
        auth_pb2_grpc.add_AuthServiceServicer_to_server(_front(fake), server)
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield Service(f"127.0.0.1:{port}", "admin", secret, fake)
        finally:
            server.stop(0).wait()


_AT = "listening at "


@contextlib.contextmanager
def real_service(data: Path) -> Iterator[Service]:
    """The real one with its data in this directory, in a process of its own."""
    command = [sys.executable, "-m", "tests.support.auth_administration", str(data)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        # It also announces its first administrator there.
        target = next((ln.removeprefix(_AT) for ln in process.stdout if ln.startswith(_AT)), "")
        assert target, "the auth service did not start"
        yield Service(target.strip(), "admin", (data / "secret").read_text().strip())
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


async def _serve_real(data: Path) -> None:
    from tests.support.auth import auth

    async with auth(data) as front:
        print(f"{_AT}{front.address}", flush=True)
        # The end of stdin is the end of whoever started this.
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve_real(Path(sys.argv[1])))
