"""Reads a certificate, its key and the trusted authorities, and makes TLS contexts of them.

Whole sets only: a set that does not fit together is refused. When to read again is for tls.py.
"""

from __future__ import annotations

import hashlib
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from cryptography import x509

_ALPN = ["h2"]
_HTTP_ALPN = ["http/1.1"]


class BadTlsFiles(Exception):
    """The files do not make a usable set; the text says why, and never what a key holds."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: a certificate chain, leaf first, its private key, and the authorities
    whose certificates are accepted (None: those of the machine)."""

    cert: Path
    key: Path
    ca: Path | None = None

    def read(self) -> TlsPem:
        """What the files hold now. Raises BadTlsFiles when one cannot be read."""
        cert, key = _read(self.cert), _read(self.key)
        ca = None if self.ca is None else _read(self.ca)
        digest = hashlib.sha256()
        for part in (cert, key, ca or b""):
            digest.update(len(part).to_bytes(8, "big") + part)
        return TlsPem(cert, key, ca, digest.digest())


@dataclass(frozen=True, slots=True)
class TlsPem:
    """The contents of a set of files, at one moment."""

    cert: bytes = field(repr=False)
    key: bytes = field(repr=False)
    ca: bytes | None = field(repr=False)
    digest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class TlsContexts:
    """One good set, ready for use. `expires_at` is in seconds since 1970.

    `server` is for gRPC ports, `https` for HTTP ports (no client certificate is asked for there),
    `client` for connections of our own transport and `credentials` for channels of grpc.aio.
    `names` are the DNS names that the certificate holds.
    """

    pem: TlsPem
    server: ssl.SSLContext
    https: ssl.SSLContext
    client: ssl.SSLContext
    credentials: grpc.ChannelCredentials
    expires_at: float
    names: tuple[str, ...]


def load(
    files: TlsFiles, *, client_auth: bool, clock: Callable[[], float] = time.time
) -> TlsContexts:
    """Makes contexts of what the files hold now. Blocks for some milliseconds.

    `client_auth`: who connects to the gRPC port must show a certificate of the authorities.
    Raises BadTlsFiles when the set cannot be used: unreadable, not PEM, a key of another
    certificate, expired, or replaced while it was read.
    """
    pem = files.read()
    try:
        leaf = x509.load_pem_x509_certificates(pem.cert)[0]
        names = _dns_names(leaf)
    except ValueError as bad:
        raise BadTlsFiles(f"{files.cert} holds no certificate that can be read") from bad
    expires_at = leaf.not_valid_after_utc.timestamp()
    if expires_at <= clock():
        raise BadTlsFiles(f"{files.cert} has expired")
    server = _serving(files, _ALPN)
    client = _context(ssl.PROTOCOL_TLS_CLIENT, files, _ALPN)
    # A common name says nothing: the name must be among the alternative ones.
    client.hostname_checks_common_name = False
    _trust(client, files, pem)
    if client_auth:
        server.verify_mode = ssl.CERT_REQUIRED
        _trust(server, files, pem)
    contexts = TlsContexts(
        pem=pem,
        server=server,
        https=_serving(files, _HTTP_ALPN),
        client=client,
        credentials=grpc.ssl_channel_credentials(_roots(client, pem), pem.key, pem.cert),
        expires_at=expires_at,
        names=names,
    )
    # OpenSSL takes the chain from files, so they must still be those that were read.
    if files.read().digest != pem.digest:
        raise BadTlsFiles("the files were replaced while they were read")
    return contexts


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as unreadable:
        raise BadTlsFiles(f"{path} cannot be read: {unreadable.strerror}") from None


def _dns_names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(found.value.get_values_for_type(x509.DNSName))


def _context(protocol: int, files: TlsFiles, alpn: list[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(alpn)
    try:
        context.load_cert_chain(files.cert, files.key, password=_no_password)
    except (OSError, ValueError) as bad:
        why = "they do not belong together" if _mismatch(bad) else _said(bad)
        raise BadTlsFiles(f"{files.cert} and {files.key} cannot be used: {why}") from None
    return context


def _serving(files: TlsFiles, alpn: list[str]) -> ssl.SSLContext:
    context = _context(ssl.PROTOCOL_TLS_SERVER, files, alpn)
    # No resumption: connections last, and each proves anew what a certificate proves.
    context.num_tickets = 0
    return context


def _trust(context: ssl.SSLContext, files: TlsFiles, pem: TlsPem) -> None:
    if pem.ca is None:
        context.load_default_certs()
        return
    try:
        context.load_verify_locations(cadata=pem.ca.decode("ascii"))
    except (OSError, ValueError) as bad:
        why = "not PEM" if isinstance(bad, UnicodeDecodeError) else _said(bad)
        raise BadTlsFiles(f"{files.ca} holds no authorities: {why}") from None
    if not context.cert_store_stats()["x509_ca"]:
        raise BadTlsFiles(f"{files.ca} holds no authorities: no certificate of one")


def _roots(client: ssl.SSLContext, pem: TlsPem) -> bytes | None:
    """As PEM for grpc.aio, which otherwise would take roots of its own for the machine's."""
    if pem.ca is not None:
        return pem.ca
    known = client.get_ca_certs(binary_form=True)
    return "".join(map(ssl.DER_cert_to_PEM_cert, known)).encode() or None


def _no_password() -> str:
    # Without this, OpenSSL would ask for the password of an encrypted key at the terminal.
    return ""


def _mismatch(bad: Exception) -> bool:
    return isinstance(bad, ssl.SSLError) and bad.reason == "KEY_VALUES_MISMATCH"


def _said(bad: Exception) -> str:
    """OpenSSL's reason, in words."""
    reason = getattr(bad, "reason", None)
    if isinstance(reason, str):
        return reason.replace("_", " ").lower()
    return getattr(bad, "strerror", None) or type(bad).__name__
