"""Creates a fresh cluster's identities through the auth service, as an administrator would.

    python -m tools.identities --auth HOST:PORT --secrets DIRECTORY [--copy NAME=DIRECTORY]…

The directory holds the file `admin` that auth wrote at its first start; a file for each
identity joins it, mode 0600. Secrets go nowhere else: not into logs, arguments or environments.
A second run finds the files and changes nothing. `--copy` puts one identity's file into a further
directory, for a service that must not see the others' secrets; the administrator's is never copied.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from anabranch.v1 import auth_pb2, auth_pb2_grpc

ADMIN = "admin"
TIMEOUT = 15.0
"""Seconds that auth may take for one answer."""


class IdentityError(Exception):
    """Auth did not create the identities; the text says why."""


@dataclass(frozen=True)
class Identity:
    """A client that the cluster starts with."""

    client_id: str
    tenant: str
    scopes: tuple[str, ...]
    purpose: str


IDENTITIES = (
    Identity("router", "operators", ("relay",), "the router's calls to engines and proxies"),
    Identity("demo", "demo", ("generate",), "a caller"),
)


async def create(
    auth: str, secrets: Path, identities: Sequence[Identity] = IDENTITIES
) -> dict[str, str]:
    """Creates the identities as the bootstrap administrator; client id → secret, admin included.

    Raises IdentityError when auth refuses.
    """
    try:
        admin_secret = (secrets / ADMIN).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise IdentityError(f"auth wrote no administrator's secret: {error}") from error
    found = {ADMIN: admin_secret}
    async with grpc.aio.insecure_channel(auth, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = auth_pb2_grpc.AuthServiceStub(channel)
        try:
            token = await stub.IssueToken(
                auth_pb2.IssueTokenRequest(client_id=ADMIN, client_secret=admin_secret),
                timeout=TIMEOUT,
            )
            for identity in identities:
                made = await stub.CreateClient(
                    auth_pb2.CreateClientRequest(
                        client_id=identity.client_id,
                        tenant=identity.tenant,
                        display_name=identity.purpose,
                        scopes=identity.scopes,
                    ),
                    metadata=(("authorization", f"Bearer {token.access_token}"),),
                    timeout=TIMEOUT,
                )
                found[identity.client_id] = made.client_secret
        except grpc.aio.AioRpcError as error:
            raise IdentityError(
                f"auth did not create the identities: {error.code().name}: {error.details()}"
            ) from error
    for client_id, secret in found.items():
        write_private(secrets / client_id, secret + "\n")
    return found


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.part")
    half.unlink(missing_ok=True)
    with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    half.replace(path)


def copy(secrets: Path, client_id: str, directory: Path) -> None:
    """The identity's secret in `directory` too, mode 0600; a good copy stays untouched.

    Raises OSError when a file cannot be read or written.
    """
    secret = (secrets / client_id).read_text(encoding="utf-8")
    target = directory / client_id
    if (
        target.exists()
        and target.stat().st_mode & 0o777 == 0o600
        and target.read_text(encoding="utf-8") == secret
    ):
        return
    write_private(target, secret)


def copied(text: str) -> tuple[str, Path]:
    """`NAME=DIRECTORY` of the command line; ArgumentTypeError for anything else, `admin` too."""
    client_id, equals, directory = text.partition("=")
    known = [identity.client_id for identity in IDENTITIES]
    if not equals or not directory or client_id not in known:
        raise argparse.ArgumentTypeError(f"NAME=DIRECTORY, where NAME is one of {known}")
    return client_id, Path(directory)


def save(run_dir: Path, credentials: Mapping[str, str], router: str, auth: str) -> None:
    """Writes credentials.json and the `env` file that a shell sources before the CLI."""
    write_private(run_dir / "credentials.json", json.dumps(dict(credentials), indent=2) + "\n")
    lines = {
        "ANABRANCH_TARGET": router,
        "ANABRANCH_AUTH_TARGET": auth,
        "ANABRANCH_CLIENT_ID": "demo",
        "ANABRANCH_CLIENT_SECRET_FILE": str(run_dir / "secrets/demo"),
    }
    (run_dir / "env").write_text(
        "".join(f"export {key}={value}\n" for key, value in lines.items()), encoding="utf-8"
    )


def main(arguments: list[str] | None = None) -> int:
    """Creates the identities unless their files are there; 1 with the reason when it cannot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--auth", required=True, help="host:port of the auth service")
    parser.add_argument("--secrets", required=True, type=Path, help="directory of the secrets")
    parser.add_argument(
        "--copy",
        action="append",
        default=[],
        type=copied,
        metavar="NAME=DIRECTORY",
        help="put this identity's secret into a further directory; may be repeated",
    )
    options = parser.parse_args(arguments)
    missing = [i for i in IDENTITIES if not (options.secrets / i.client_id).exists()]
    try:
        if missing:
            asyncio.run(create(options.auth, options.secrets, missing))
        for client_id, directory in options.copy:
            copy(options.secrets, client_id, directory)
    except (IdentityError, OSError) as error:
        print(f"identities: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
