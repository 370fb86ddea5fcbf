"""Seals private signing keys at rest, each bound to its kid, in the chassis's envelopes.

It still opens the form that came before those. Where the master secret comes from: a setting, or a
file that is made beside a SQLite database. It stores nothing in the database itself.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.chassis.encryption.ciphers import NONCE_BYTES, CipherName
from services.chassis.encryption.envelope import Envelope
from services.chassis.encryption.errors import EncryptionError, UnknownKeyError
from services.chassis.encryption.keychain import Keychain
from services.chassis.private_files import put_once

TENANT = "operators"
"""Whose the signing keys are: of no tenant that calls."""
_FIRST_FORM = b"\x01"


class VaultError(Exception):
    """A sealed key cannot be opened: another master secret, or tampering."""


class Vault:
    """Seals with a keychain's current key; opens with any of its keys.

    `first_secret` opens what was sealed before there were keychains.
    """

    def __init__(self, keychain: Keychain, first_secret: str | None = None) -> None:
        self._keychain = keychain
        self._envelope = Envelope(keychain)
        self._first = None if first_secret is None else _first_cipher(first_secret)

    @classmethod
    def under(cls, secret: str) -> Self:
        """With one text secret for everything. Raises EncryptionError when it is too short."""
        return cls(Keychain.from_secret(secret), secret)

    def seal(self, plain: bytes, *, kid: str) -> bytes:
        """Opens only for the same kid."""
        return self._envelope.seal(
            plain, tenant=TENANT, field=_field(kid), cipher=CipherName.AES_256_GCM
        )

    def open(self, sealed: bytes, *, kid: str) -> bytes:
        """Raises VaultError."""
        if sealed[:1] == _FIRST_FORM:
            return self._open_first(sealed, kid)
        try:
            return self._envelope.open(sealed, tenant=TENANT, field=_field(kid))
        except EncryptionError as refused:
            raise _refused(kid, refused) from None

    def is_current(self, sealed: bytes) -> bool:
        """Whether it says that it was sealed as it would be now."""
        try:
            return self._envelope.kek_of(sealed) == self._keychain.current
        except EncryptionError:
            return False

    def resealed(self, sealed: bytes, *, kid: str) -> bytes:
        """The same under the current key, in the current form. Raises VaultError."""
        if sealed[:1] == _FIRST_FORM:
            return self.seal(self._open_first(sealed, kid), kid=kid)
        try:
            return self._envelope.rewrap(sealed, tenant=TENANT, field=_field(kid))
        except EncryptionError as refused:
            raise _refused(kid, refused) from None

    def _open_first(self, sealed: bytes, kid: str) -> bytes:
        if self._first is None:
            raise VaultError(
                f"signing key {kid} was sealed before there were keychains, "
                "so key_encryption_secret is needed once more"
            )
        nonce, ciphertext = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        try:
            return self._first.decrypt(nonce, ciphertext, b"signing_key|" + kid.encode() + b"|1")
        except (InvalidTag, ValueError):
            raise VaultError(
                f"signing key {kid} was sealed with another key_encryption_secret, or tampered with"
            ) from None


def _field(kid: str) -> str:
    return f"signing_key|{kid}"


def _first_cipher(secret: str) -> AESGCM:
    info = b"anabranch auth signing keys v1"
    return AESGCM(HKDF(SHA256(), 32, salt=None, info=info).derive(secret.encode()))


def _refused(kid: str, refused: EncryptionError) -> VaultError:
    if isinstance(refused, UnknownKeyError):
        return VaultError(f"signing key {kid} cannot be opened: {refused}")
    return VaultError(f"signing key {kid} was sealed with another key, or tampered with")


def master_secret_beside(database: Path) -> str:
    """The master secret in the file `<database>.key`, made with mode 0600 when missing."""
    path = _beside(database)
    if not path.exists():
        put_once(path, f"{secrets.token_urlsafe(32)}\n".encode())
    return path.read_text().strip()


def earlier_secret_beside(database: Path) -> str | None:
    """The same if it is there; nothing is made."""
    path = _beside(database)
    return path.read_text().strip() if path.exists() else None


def _beside(database: Path) -> Path:
    return database.with_name(database.name + ".key")
