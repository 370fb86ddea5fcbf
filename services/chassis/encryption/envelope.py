"""Seals bytes for one tenant and field under a data key of theirs, which travels wrapped with them.

The keys that wrap are keychain.py's. Where sealed bytes are kept is not known here.

    version   1 byte    2; 1 was the auth service's first form
    cipher    1 byte    its number in ciphers.py
    kek id    1 byte of length, and the id in ASCII
    wrapped   nonce, data key and tag, under that key-encryption key
    body      nonce, ciphertext and tag, under the data key

Both layers are bound to version, cipher, tenant and field, the wrapped key also to the kek's id;
so re-wrapping leaves the body as it is, and nothing opens in another place.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from services.chassis.encryption.ciphers import (
    FORMS,
    NAMES,
    NONCE_BYTES,
    TAG_BYTES,
    Aead,
    CipherName,
)
from services.chassis.encryption.errors import EncryptionError
from services.chassis.encryption.keychain import Keychain
from services.chassis.encryption.keychain_document import KEY_ID, MAX_ID_BYTES

VERSION = 2
MAX_PLAIN_BYTES = 64 * 1024 * 1024
MAX_NAME_BYTES = 1024
"""Of a tenant's name, and of a field's, in UTF-8."""
OVERHEAD_BYTES = (
    3 + MAX_ID_BYTES + 2 * (NONCE_BYTES + TAG_BYTES) + max(f.key_bytes for f in FORMS.values())
)
"""What sealing adds at most."""

_WRAPPED, _BODY = b"\x01", b"\x02"


class _Parts(NamedTuple):
    cipher: CipherName
    kek_id: str
    wrapped: bytes
    body: bytes


class _DataKey:
    """A data key in use, and its wrapped form; `seals` counts how often it was used."""

    __slots__ = ("aead", "made_at", "seals", "wrapped")

    def __init__(self, aead: Aead, wrapped: bytes, made_at: float) -> None:
        self.aead = aead
        self.wrapped = wrapped
        self.made_at = made_at
        self.seals = 0


class Envelope:
    """Seals and opens with one keychain, for any thread.

    A data key belongs to a tenant, a field and a cipher. It is replaced after `seals_per_key`
    seals or `key_life` seconds of `clock`, which is monotonic: nonces are random, and 2^20 of 96
    bits meet with a chance of 2^-57. `remembered` bounds the data keys held for sealing, and those
    held for opening. Fields name a kind of data: each new one costs the keychain's current key a
    wrap, of which it has 2^32.
    """

    def __init__(
        self,
        keychain: Keychain,
        *,
        clock: Callable[[], float] = time.monotonic,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        seals_per_key: int = 2**20,
        key_life: float = 3600.0,
        remembered: int = 4096,
    ) -> None:
        self._keychain = keychain
        self._clock = clock
        self._random = random_bytes
        self._seals_per_key = seals_per_key
        self._key_life = key_life
        self._remembered = remembered
        self._lock = threading.Lock()
        self._sealing: OrderedDict[tuple[CipherName, str, str], _DataKey] = OrderedDict()
        self._opening: OrderedDict[tuple[CipherName, str, bytes, bytes], Aead] = OrderedDict()

    def __repr__(self) -> str:
        return f"Envelope({self._keychain!r})"

    def seal(self, plain: bytes, *, tenant: str, field: str, cipher: CipherName) -> bytes:
        """At most OVERHEAD_BYTES more than `plain`; opens for the same tenant and field only.

        Raises ValueError for more than MAX_PLAIN_BYTES, or a longer name than MAX_NAME_BYTES.
        """
        if len(plain) > MAX_PLAIN_BYTES:
            raise ValueError(f"at most {MAX_PLAIN_BYTES} bytes are sealed, not {len(plain)}")
        place = _place(cipher, tenant, field)
        kek_id = self._keychain.current
        key = self._data_key(cipher, tenant, field, place)
        nonce = self._random(NONCE_BYTES)
        body = nonce + key.aead.encrypt(nonce, plain, _BODY + place)
        return _head(cipher, kek_id) + key.wrapped + body

    def open(self, sealed: bytes, *, tenant: str, field: str) -> bytes:
        """What was sealed for this tenant and field.

        Raises UnknownKeyError, naming the id, when it was sealed under a key-encryption key that
        the keychain does not hold; EncryptionError, always of one text, for everything else.
        """
        parts = _split(sealed)
        place = _place_to_open(parts.cipher, tenant, field)
        wanted = (parts.cipher, parts.kek_id, parts.wrapped, place)
        with self._lock:
            aead = self._opening.get(wanted)
            if aead is not None:
                self._opening.move_to_end(wanted)
        if aead is None:
            aead = FORMS[parts.cipher].new(self._unwrapped(parts, place))
            with self._lock:
                self._opening[wanted] = aead
                while len(self._opening) > self._remembered:
                    self._opening.popitem(last=False)
        nonce, ciphertext = parts.body[:NONCE_BYTES], parts.body[NONCE_BYTES:]
        return aead.decrypt(nonce, ciphertext, _BODY + place)

    def rewrap(self, sealed: bytes, *, tenant: str, field: str) -> bytes:
        """The same under the current key-encryption key: only its data key is wrapped anew.

        What is under the current one already stays. The body is not looked at. Raises as `open`.
        """
        parts = _split(sealed)
        place = _place_to_open(parts.cipher, tenant, field)
        data_key = self._unwrapped(parts, place)
        kek_id = self._keychain.current
        if parts.kek_id == kek_id:
            return sealed
        return _head(parts.cipher, kek_id) + self._wrap(data_key, parts.cipher, place) + parts.body

    def kek_of(self, sealed: bytes) -> str:
        """The id of the key-encryption key, as written: nothing vouches for it before it is opened.

        Raises EncryptionError for what is no sealed data of this form.
        """
        return _split(sealed).kek_id

    def _data_key(self, cipher: CipherName, tenant: str, field: str, place: bytes) -> _DataKey:
        wanted = (cipher, tenant, field)
        with self._lock:
            key = self._sealing.get(wanted)
            now = self._clock()
            if (
                key is None
                or key.seals >= self._seals_per_key
                or now - key.made_at >= self._key_life
            ):
                fresh = self._random(FORMS[cipher].key_bytes)
                wrapped = self._wrap(fresh, cipher, place)
                key = self._sealing[wanted] = _DataKey(FORMS[cipher].new(fresh), wrapped, now)
            self._sealing.move_to_end(wanted)
            key.seals += 1
            while len(self._sealing) > self._remembered:
                self._sealing.popitem(last=False)
            return key

    def _wrap(self, data_key: bytes, cipher: CipherName, place: bytes) -> bytes:
        kek_id = self._keychain.current
        nonce = self._random(NONCE_BYTES)
        aead = self._keychain.wrapping(kek_id, cipher)
        return nonce + aead.encrypt(nonce, data_key, _wrapped_at(place, kek_id))

    def _unwrapped(self, parts: _Parts, place: bytes) -> bytes:
        aead = self._keychain.wrapping(parts.kek_id, parts.cipher)
        nonce, wrapped = parts.wrapped[:NONCE_BYTES], parts.wrapped[NONCE_BYTES:]
        return aead.decrypt(nonce, wrapped, _wrapped_at(place, parts.kek_id))


def _head(cipher: CipherName, kek_id: str) -> bytes:
    return bytes((VERSION, FORMS[cipher].number, len(kek_id))) + kek_id.encode("ascii")


def _split(sealed: bytes) -> _Parts:
    """Raises EncryptionError for what cannot have been sealed, before anything is made of it."""
    if not 3 <= len(sealed) <= MAX_PLAIN_BYTES + OVERHEAD_BYTES or sealed[0] != VERSION:
        raise EncryptionError
    cipher = NAMES.get(sealed[1])
    if cipher is None:
        raise EncryptionError
    id_end = 3 + sealed[2]
    body_at = id_end + NONCE_BYTES + FORMS[cipher].key_bytes + TAG_BYTES
    if len(sealed) < body_at + NONCE_BYTES + TAG_BYTES:
        raise EncryptionError
    kek_id = sealed[3:id_end].decode("latin-1")
    if not KEY_ID.fullmatch(kek_id):
        raise EncryptionError
    return _Parts(cipher, kek_id, sealed[id_end:body_at], sealed[body_at:])


def _place(cipher: CipherName, tenant: str, field: str) -> bytes:
    """What both layers are bound to. Raises ValueError for names that are too long or no text."""
    place = bytes((VERSION, FORMS[cipher].number))
    for name in (tenant, field):
        raw = name.encode()
        if len(raw) > MAX_NAME_BYTES:
            raise ValueError(f"a tenant or field has at most {MAX_NAME_BYTES} bytes")
        place += len(raw).to_bytes(4) + raw
    return place


def _place_to_open(cipher: CipherName, tenant: str, field: str) -> bytes:
    try:
        return _place(cipher, tenant, field)
    except ValueError:  # nothing was sealed for such names
        raise EncryptionError from None


def _wrapped_at(place: bytes, kek_id: str) -> bytes:
    return _WRAPPED + place + kek_id.encode("ascii")
