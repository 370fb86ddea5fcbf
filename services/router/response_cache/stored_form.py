"""How a kept answer is written for a store beyond the process's memory: as it is, or sealed.

What an entry is in bytes, entry.py knows; where these bytes are kept, the tiers do.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from services.chassis.encryption.envelope import OVERHEAD_BYTES, Envelope
from services.chassis.encryption.errors import EncryptionError
from services.router.response_cache.entry import Entry, pack, packed_size, unpack
from services.router.response_cache.key import AnswerKey

_FIELD = "response_cache.answer"

_AT_ONCE_BYTES = 16 * 1024
"""Ciphering more is done by a thread: SM4 takes 8 ms a MiB, and streams would stop for it."""


class StoredForm(Protocol):
    """Entries as the bytes of a store."""

    async def pack(self, key: AnswerKey, entry: Entry) -> bytes:
        """At most `packed_size` of the entry's size."""

    def packed_size(self, longest: int) -> int:
        """Bytes of the largest entry of `longest` bytes, or more."""

    async def unpack(self, key: AnswerKey, raw: bytes) -> Entry:
        """Raises ValueError for anything but the whole entry of this very key in this form."""


class PlainForm:
    """As they are, for whoever can read the store to read."""

    async def pack(self, key: AnswerKey, entry: Entry) -> bytes:
        """See StoredForm."""
        return pack(key.digest, entry)

    def packed_size(self, longest: int) -> int:
        """See StoredForm."""
        return packed_size(longest)

    async def unpack(self, key: AnswerKey, raw: bytes) -> Entry:
        """See StoredForm."""
        return unpack(key.digest, raw)


class SealedForm:
    """Sealed for the tenant, each with the cipher that is the tenant's when it is kept.

    The entry's key is within, so no entry can be passed off as another one of the tenant's.
    """

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope

    async def pack(self, key: AnswerKey, entry: Entry) -> bytes:
        """See StoredForm."""
        if entry.size > _AT_ONCE_BYTES:
            return await asyncio.to_thread(self._seal, key, entry)
        return self._seal(key, entry)

    def packed_size(self, longest: int) -> int:
        """See StoredForm."""
        return packed_size(longest) + OVERHEAD_BYTES

    async def unpack(self, key: AnswerKey, raw: bytes) -> Entry:
        """See StoredForm."""
        if len(raw) > _AT_ONCE_BYTES:
            return await asyncio.to_thread(self._open, key, raw)
        return self._open(key, raw)

    def _seal(self, key: AnswerKey, entry: Entry) -> bytes:
        return self._envelope.seal(
            pack(key.digest, entry),
            tenant=key.tenant,
            field=_FIELD,
            cipher=key.cipher,
        )

    def _open(self, key: AnswerKey, raw: bytes) -> Entry:
        try:
            plain = self._envelope.open(raw, tenant=key.tenant, field=_FIELD)
        except EncryptionError as refused:
            raise ValueError(str(refused)) from None
        return unpack(key.digest, plain)
