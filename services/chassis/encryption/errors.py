"""What goes wrong with sealed data and with keychains. No text here holds a key or a plaintext."""

from __future__ import annotations

CANNOT_OPEN = "stored data cannot be opened"


class EncryptionError(Exception):
    """Sealed data that does not open, or keys that cannot be used.

    For sealed data the text is always CANNOT_OPEN: wrong tenant, wrong field, another key under
    the same id, a changed or cut blob and an unknown form cannot be told apart by it.
    """

    def __init__(self, text: str = CANNOT_OPEN) -> None:
        super().__init__(text)


class UnknownKeyError(EncryptionError):
    """A key-encryption key that the keychain does not hold; `key_id` is what it is called.

    The id stands readable in what was sealed, so naming it tells an operator what is missing and
    an attacker nothing.
    """

    def __init__(self, key_id: str) -> None:
        super().__init__(f"the keychain holds no key-encryption key {key_id!r}")
        self.key_id = key_id
