"""The two authenticated ciphers that data may be sealed with, behind one protocol.

Which tenant's data gets which, and where keys and nonces come from, is not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple, Protocol

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.chassis.encryption.errors import EncryptionError

NONCE_BYTES = 12
TAG_BYTES = 16


class CipherName(StrEnum):
    """A cipher as settings and policies name it."""

    AES_256_GCM = "AES_256_GCM"
    SM4_GCM = "SM4_GCM"


class Aead(Protocol):
    """A cipher with its key. Nonces are NONCE_BYTES long and never used twice with one key."""

    def encrypt(self, nonce: bytes, plain: bytes, bound_to: bytes) -> bytes:
        """The ciphertext and a tag of TAG_BYTES behind it."""

    def decrypt(self, nonce: bytes, sealed: bytes, bound_to: bytes) -> bytes:
        """Raises EncryptionError, before any plaintext is let out."""


class CipherForm(NamedTuple):
    """What the sealed form has to know of a cipher: its number there and its key's size."""

    number: int
    key_bytes: int
    new: Callable[[bytes], Aead]


class _AesGcm:
    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def encrypt(self, nonce: bytes, plain: bytes, bound_to: bytes) -> bytes:
        return self._cipher.encrypt(nonce, plain, bound_to)

    def decrypt(self, nonce: bytes, sealed: bytes, bound_to: bytes) -> bytes:
        try:
            return self._cipher.decrypt(nonce, sealed, bound_to)
        except InvalidTag:
            raise EncryptionError from None


class _Sm4Gcm:
    """RFC 8998 has the cipher's parameters: a key of 128 bits, a nonce of 96, a tag of 128."""

    __slots__ = ("_algorithm",)

    def __init__(self, key: bytes) -> None:
        self._algorithm = algorithms.SM4(key)

    def encrypt(self, nonce: bytes, plain: bytes, bound_to: bytes) -> bytes:
        encryptor = Cipher(self._algorithm, modes.GCM(nonce)).encryptor()
        encryptor.authenticate_additional_data(bound_to)
        return encryptor.update(plain) + encryptor.finalize() + encryptor.tag

    def decrypt(self, nonce: bytes, sealed: bytes, bound_to: bytes) -> bytes:
        if len(sealed) < TAG_BYTES:
            raise EncryptionError
        decryptor = Cipher(self._algorithm, modes.GCM(nonce)).decryptor()
        decryptor.authenticate_additional_data(bound_to)
        plain = decryptor.update(sealed[:-TAG_BYTES])
        try:
            return plain + decryptor.finalize_with_tag(sealed[-TAG_BYTES:])
        except InvalidTag:
            raise EncryptionError from None


FORMS = {
    CipherName.AES_256_GCM: CipherForm(1, 32, _AesGcm),
    CipherName.SM4_GCM: CipherForm(2, 16, _Sm4Gcm),
}
NAMES = {form.number: name for name, form in FORMS.items()}
"""A cipher by its number in the sealed form."""


def require(cipher: CipherName) -> None:
    """Makes sure that this build offers the cipher, for when it is configured.

    Raises EncryptionError where the OpenSSL that is linked lacks it: SM4-GCM needs 3.1 or later,
    built without `no-sm4`.
    """
    form = FORMS[cipher]
    try:
        form.new(bytes(form.key_bytes)).encrypt(bytes(NONCE_BYTES), b"", b"")
    except UnsupportedAlgorithm:
        raise EncryptionError(
            f"{cipher} is not offered by the OpenSSL that `cryptography` is linked with"
        ) from None
