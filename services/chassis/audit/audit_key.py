"""The key that signs a trail's heads: read from its file, or made there, its public half beside it.

It signs nothing itself.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from services.chassis.private_files import put_once

_LARGEST = 16 * 1024


class KeyFileError(Exception):
    """A file does not hold an Ed25519 key."""


def signing_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a PEM file (PKCS #8), made with mode 0600 when there is none; its public
    key lies in `<path>.pub` for others to copy and to keep elsewhere.

    Processes that start together agree on one key. Raises KeyFileError and OSError.
    """
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = Ed25519PrivateKey.generate()
        put_once(path, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    try:
        key = load_pem_private_key(path.read_bytes()[:_LARGEST], None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path} does not hold an Ed25519 private key in PEM form, unencrypted")
    public = path.with_name(path.name + ".pub")
    # A key from a read-only place has its public half elsewhere.
    if not public.exists() and os.access(path.parent, os.W_OK):
        form = PublicFormat.SubjectPublicKeyInfo
        put_once(public, key.public_key().public_bytes(Encoding.PEM, form), mode=0o644)
    return key


def read_public_key(text: str) -> bytes:
    """The 32 bytes of a public key given as 64 hexadecimal digits, or as the path of a PEM file.

    Raises KeyFileError and OSError.
    """
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) == 32:
        return raw
    data = Path(text).read_bytes()[:_LARGEST]
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{text} does not hold an Ed25519 public key in PEM form")
    return key.public_bytes_raw()
