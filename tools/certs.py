"""Makes a certificate authority for this machine, and a certificate for each service and a client.

    python -m tools.certs [--directory .run/certs] [--days 90]

A second run renews the certificates and keeps the authority, so that whoever trusts it goes on
doing so; running services take the new ones up by themselves. For trying TLS out, not for
production: the authority's key lies beside what it signs (see deploy/cert-manager).
"""

from __future__ import annotations

import argparse
import ipaddress
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tools.identities import write_private

SERVICES = ("anabranch-auth", "anabranch-engine", "anabranch-cloud", "anabranch-router")
CLIENT = "client"
CA = "ca"
DIRECTORY = Path(".run/certs")
DAYS = 90
_CA_DAYS = 3650
_LOCAL_NAMES = ("localhost",)
_LOCAL_ADDRESSES = ("127.0.0.1", "::1")
# Clocks differ, and a certificate is used the moment it is there.
_BACKDATED = timedelta(minutes=10)


class CertificateError(Exception):
    """The authority cannot sign; the text says why."""


@dataclass(frozen=True)
class Authority:
    """A certificate that signs others, with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make(directory: Path, *, days: int = DAYS, now: datetime | None = None) -> list[Path]:
    """Makes or renews everything in `directory` and returns the files written.

    NAME.pem is a certificate and NAME.key its private key, mode 0600; ca.pem is what to trust.
    Certificates live for `days`, but no longer than the authority.
    Raises CertificateError when the authority that is there cannot sign any more.
    """
    now = now or datetime.now(UTC)
    directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    if not (directory / f"{CA}.pem").exists():
        written += _save(directory, CA, *_new_authority(now))
    authority = _authority(directory, now)
    for name in (*SERVICES, CLIENT):
        written += _save(directory, name, *_leaf(authority, name, now, timedelta(days=days)))
    return written


def _authority(directory: Path, now: datetime) -> Authority:
    try:
        certificate = x509.load_pem_x509_certificate((directory / f"{CA}.pem").read_bytes())
        key = serialization.load_pem_private_key((directory / f"{CA}.key").read_bytes(), None)
    except (OSError, ValueError, TypeError) as bad:
        raise CertificateError(f"the authority in {directory} cannot be read: {bad}") from bad
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != (
        certificate.public_key()
    ):
        raise CertificateError(f"{directory}/{CA}.key does not belong to {CA}.pem")
    if certificate.not_valid_after_utc <= now:
        raise CertificateError(
            f"the authority in {directory} has expired: remove {CA}.pem and {CA}.key for another"
        )
    return Authority(certificate, key)


def _new_authority(now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Anabranch on this machine")
    builder = (
        _builder(name, name, key, now, now + timedelta(days=_CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return builder.sign(key, hashes.SHA256()), key


def _leaf(
    authority: Authority, name: str, now: datetime, life: timedelta
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate
    until = min(now + life, issuer.not_valid_after_utc)
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    names: list[x509.GeneralName] = [x509.DNSName(name)]
    if name != CLIENT:
        # Services call each other, so each is at times a client too.
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        names += [x509.DNSName(local) for local in _LOCAL_NAMES]
        names += [x509.IPAddress(ipaddress.ip_address(local)) for local in _LOCAL_ADDRESSES]
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = (
        _builder(_name(name), issuer.subject, key, now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(signer, critical=False)
    )
    return builder.sign(authority.key, hashes.SHA256()), key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    until: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _save(
    directory: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> list[Path]:
    private, public = directory / f"{name}.key", directory / f"{name}.pem"
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_private(private, pem.decode())
    half = directory / f".{public.name}.part"
    half.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    half.replace(public)
    return [private, public]


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes or renews them; 1 with the reason when it cannot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help=f"default {DIRECTORY}")
    parser.add_argument(
        "--days", type=int, default=DAYS, help=f"how long certificates are valid, default {DAYS}"
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.days <= _CA_DAYS:
        parser.error(f"--days is between 1 and {_CA_DAYS}")
    try:
        written = make(options.directory, days=options.days)
    except (CertificateError, OSError) as error:
        print(f"certs: {error}", file=sys.stderr)
        return 1
    print(f"{len(written) // 2} certificates in {options.directory}, trusted through {CA}.pem")
    return 0


if __name__ == "__main__":
    sys.exit(main())
