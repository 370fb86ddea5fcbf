"""A running auth service for tests, its first administrator and the ways to call it."""

import base64
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from anabranch.v1 import auth_pb2 as pb
from anabranch.v1.auth_pb2_grpc import AuthServiceStub
from services.auth.app import running
from services.auth.settings import Settings
from services.auth.vault import Vault
from services.chassis.authn import Verifier
from services.chassis.errors import Fault, fault_from_rpc_error
from tests.support.waiting import until as until

ISSUER = "https://auth.anabranch.internal"


def basic(client_id: str, secret: str) -> dict[str, str]:
    """The HTTP header of client_secret_basic."""
    pair = base64.b64encode(f"{client_id}:{secret}".encode()).decode()
    return {"Authorization": f"Basic {pair}"}


class Front:
    """One running auth service, its first administrator and the ways to call it."""

    def __init__(
        self, address: str, http: str, secret: str, data: Path, own: Verifier | None = None
    ) -> None:
        """`own` is the service's verifier of the credentials that it is called with."""
        self.own = own
        self.address = address
        self.port = int(address.rpartition(":")[2])
        self.use(grpc.aio.insecure_channel(address))
        self.http = f"http://{http}"
        self.secret = secret
        self.data = data

    def use(self, channel: grpc.aio.Channel) -> None:
        """Calls over this channel from now on."""
        self.channel = channel
        self.stub = AuthServiceStub(channel)

    async def token(self, client_id: str = "admin", secret: str = "", *scopes: str) -> str:
        request = pb.IssueTokenRequest(
            client_id=client_id, client_secret=secret or self.secret, scopes=scopes
        )
        return str((await self.stub.IssueToken(request)).access_token)

    async def as_admin(self, call: Callable[..., Any], request: Any) -> Any:
        return await call(request, metadata=bearer(await self.token()))

    async def new_client(self, client_id: str, *scopes: str) -> str:
        request = pb.CreateClientRequest(
            client_id=client_id, tenant="shop", scopes=scopes or ["generate"]
        )
        return str((await self.as_admin(self.stub.CreateClient, request)).client_secret)

    async def active(self, token: str) -> bool:
        request = pb.IntrospectTokenRequest(token=token)
        return bool((await self.as_admin(self.stub.IntrospectToken, request)).active)


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


def real_key(data: Path) -> tuple[str, Ed25519PrivateKey]:
    """The id and the private half of the key that a service with this directory signs with."""
    connection = sqlite3.connect(data / "auth.db")
    kid, sealed = connection.execute("SELECT kid, sealed_private_key FROM signing_keys").fetchone()
    connection.close()
    secret = (data / "auth.db.key").read_text().strip()
    return kid, Ed25519PrivateKey.from_private_bytes(Vault.under(secret).open(sealed, kid=kid))


def sealed_before_keychains(secret: str, plain: bytes, *, kid: str) -> bytes:
    """A private key as databases have it that were made before there were keychains."""
    info = b"anabranch auth signing keys v1"
    key = HKDF(SHA256(), 32, salt=None, info=info).derive(secret.encode())
    nonce = os.urandom(12)
    bound_to = b"signing_key|" + kid.encode() + b"|1"
    return b"\x01" + nonce + AESGCM(key).encrypt(nonce, plain, bound_to)


@asynccontextmanager
async def auth(
    tmp_path: Path, *, clock: Callable[[], float] = time.time, **changes: Any
) -> AsyncIterator[Front]:
    secret_file = tmp_path / "secret"
    settings = Settings(
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        registry="none",
        data_dir=tmp_path,
        bootstrap_secret_file=secret_file,
        drain_timeout=1.0,
        **changes,
    )
    async with running(settings, clock=clock) as host:
        secret = secret_file.read_text().strip()
        front = Front(host.address, host.http_address, secret, tmp_path, host.verifier)
        async with front.channel:
            yield front


async def refused(call: Any) -> Fault:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return fault_from_rpc_error(caught.value)
