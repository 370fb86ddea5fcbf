"""The key-encryption keys of an operator, by id, one of them current. They seal data keys only.

The text of a keychain is keychain_document.py's; what is sealed, and for whom, envelope.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.chassis.encryption.ciphers import FORMS, Aead, CipherName
from services.chassis.encryption.errors import EncryptionError, UnknownKeyError
from services.chassis.encryption.keychain_document import (
    KEK_BYTES,
    KEY_ID,
    SECRET_ID,
    KeychainDocument,
    parse_keychain,
)

MIN_SECRET = 32
"""Characters of a text secret: a random text of this length is beyond guessing."""
MAX_FILE_BYTES = 64 * 1024


class Keychain:
    """Keys by id. It never changes; a new file is a new keychain, and a restart.

    Its repr has the ids and no key.
    """

    __slots__ = ("_keys", "_wrapping", "current")

    def __init__(self, keys: Mapping[str, bytes], current: str) -> None:
        """`keys` are KEK_BYTES each. Raises UnknownKeyError when `current` is not among them."""
        if not all(KEY_ID.fullmatch(key_id) for key_id in keys):
            raise EncryptionError("the id of a key-encryption key has a character that none may")
        if any(len(key) != KEK_BYTES for key in keys.values()):
            raise EncryptionError(f"a key-encryption key must have {KEK_BYTES} bytes")
        if current not in keys:
            raise UnknownKeyError(current)
        self.current = current
        self._keys = dict(keys)
        self._wrapping: dict[tuple[str, CipherName], Aead] = {}

    @classmethod
    def of(cls, document: KeychainDocument) -> Self:
        """The keychain of a document."""
        return cls(document.keys, document.current)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The keychain in a JSON or YAML file of at most MAX_FILE_BYTES.

        Raises EncryptionError, whose text begins with the path and quotes no key.
        """
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
            if len(raw) > MAX_FILE_BYTES:
                raise EncryptionError(f"a keychain must have at most {MAX_FILE_BYTES} bytes")
            return cls.of(parse_keychain(raw.decode()))
        except OSError as unreadable:
            raise EncryptionError(f"{path}: cannot be read: {unreadable.strerror}") from None
        except UnicodeDecodeError:
            raise EncryptionError(f"{path}: is not UTF-8") from None
        except EncryptionError as refused:
            raise EncryptionError(f"{path}: {refused}") from None

    @classmethod
    def from_secret(cls, secret: str) -> Self:
        """A keychain of one key, SECRET_ID, derived from a text of at least MIN_SECRET characters.

        Raises EncryptionError for a shorter one.
        """
        return cls({SECRET_ID: _from_secret(secret)}, SECRET_ID)

    def and_secret(self, secret: str) -> Self:
        """The same, which also opens what was sealed under a text secret; `current` stays."""
        return type(self)(self._keys | {SECRET_ID: _from_secret(secret)}, self.current)

    def wrapping(self, key_id: str, cipher: CipherName) -> Aead:
        """What wraps data keys of this cipher under the key of this id. Raises UnknownKeyError.

        It is the same cipher with a key of its own, so that no key serves two ciphers.
        """
        known = self._wrapping.get((key_id, cipher))
        if known is not None:
            return known
        key = self._keys.get(key_id)
        if key is None:
            raise UnknownKeyError(key_id)
        form = FORMS[cipher]
        info = b"anabranch data key wrapping v1|" + cipher.value.encode()
        made = form.new(HKDF(SHA256(), form.key_bytes, salt=None, info=info).derive(key))
        self._wrapping[key_id, cipher] = made
        return made

    def __repr__(self) -> str:
        return f"Keychain(current={self.current!r}, ids={sorted(self._keys)!r})"


def _from_secret(secret: str) -> bytes:
    if len(secret) < MIN_SECRET:
        raise EncryptionError(f"a key-encryption secret must have at least {MIN_SECRET} characters")
    info = b"anabranch key-encryption key v1"
    return HKDF(SHA256(), KEK_BYTES, salt=None, info=info).derive(secret.encode())
