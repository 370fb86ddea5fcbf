"""Certificates of tools.certs as settings and credentials, and authorities that replace others."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path
from typing import Any

import grpc

from services.chassis.tls_files import TlsFiles
from tools import certs

PERIOD_S = 0.05


def made(directory: Path, **how: Any) -> Path:
    """A directory with an authority of its own and what it signed."""
    certs.make(directory, **how)
    return directory


def files(directory: Path, name: str) -> TlsFiles:
    """The set of one service, or of the client."""
    return TlsFiles(directory / f"{name}.pem", directory / f"{name}.key", directory / "ca.pem")


def settings(directory: Path, name: str, **changes: Any) -> dict[str, Any]:
    """What the settings of a service say to use them."""
    return {
        "tls_cert_file": directory / f"{name}.pem",
        "tls_key_file": directory / f"{name}.key",
        "tls_ca_file": directory / "ca.pem",
        "tls_reload_period": PERIOD_S,
        **changes,
    }


def credentials(directory: Path, name: str | None = certs.CLIENT) -> grpc.ChannelCredentials:
    """A caller's, for grpc.aio; without a certificate when `name` is None."""
    if name is None:
        return grpc.ssl_channel_credentials((directory / "ca.pem").read_bytes())
    return grpc.ssl_channel_credentials(
        (directory / "ca.pem").read_bytes(),
        (directory / f"{name}.key").read_bytes(),
        (directory / f"{name}.pem").read_bytes(),
    )


def context(
    directory: Path,
    name: str | None = certs.CLIENT,
    *,
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLContext:
    """A caller's, for raw sockets."""
    made = ssl.create_default_context(cafile=directory / "ca.pem")
    made.maximum_version = newest
    made.set_alpn_protocols(["h2"])
    if name is not None:
        made.load_cert_chain(directory / f"{name}.pem", directory / f"{name}.key")
    return made


def serial(directory: Path, name: str) -> str:
    """The serial number of a certificate on disk, as a peer sees it."""
    decoded = ssl._ssl._test_decode_cert(str(directory / f"{name}.pem"))  # type: ignore[attr-defined]
    return str(decoded["serialNumber"])


def replace_all(directory: Path, by: Path) -> None:
    """Puts another authority and its certificates into place, file by file."""
    for file in by.iterdir():
        half = directory / f".{file.name}.new"
        shutil.copyfile(file, half)
        half.replace(directory / file.name)
