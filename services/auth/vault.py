"""Seals private signing keys at rest with AES-256-GCM, each bound to its kid.

Where the master secret comes from: a setting, or a file that is made beside a
SQLite database. It stores nothing in the database itself.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_VERSION = b"\x01"
_NONCE_BYTES = 12
MIN_SECRET = 32
"""Characters of a master secret: a random text of this length is beyond guessing."""


class VaultError(Exception):
    """A sealed key cannot be opened: another master secret, or tampering."""


class Vault:
    """Seals and opens with one key derived from the master secret."""

    def __init__(self, master_secret: str) -> None:
        derived = HKDF(SHA256(), 32, salt=None, info=b"anabranch auth signing keys v1").derive(
            master_secret.encode()
        )
        self._cipher = AESGCM(derived)

    def seal(self, plain: bytes, *, kid: str) -> bytes:
        """Version, nonce and ciphertext; opens only for the same kid."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _VERSION + nonce + self._cipher.encrypt(nonce, plain, self._bound_to(kid))

    def open(self, sealed: bytes, *, kid: str) -> bytes:
        """Raises VaultError."""
        if sealed[:1] != _VERSION:
            raise VaultError(f"signing key {kid} is sealed in a form this version does not know")
        nonce, ciphertext = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, ciphertext, self._bound_to(kid))
        except InvalidTag:
            raise VaultError(
                f"signing key {kid} was sealed with another key_encryption_secret, or tampered with"
            ) from None

    @staticmethod
    def _bound_to(kid: str) -> bytes:
        return b"signing_key|" + kid.encode() + b"|1"


def master_secret_beside(database: Path) -> str:
    """The master secret in the file `<database>.key`, made with mode 0600 when missing.

    Linking a finished file into place makes two processes that start together
    agree on one secret, and leaves no half-written one behind a crash.
    """
    path = database.with_name(database.name + ".key")
    if not path.exists():
        draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        write_private(draft, secrets.token_urlsafe(32) + "\n")
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, from its first moment; never through a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
