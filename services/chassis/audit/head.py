"""The signed end of an audit trail: whoever has one knows that the trail reaches so far.

Pure, but for the arithmetic of Ed25519. A copy kept elsewhere shows that a trail was cut, together
with the heads that lay beside it; a public key kept elsewhere shows who signed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from services.chassis.audit.entry import ChainedEntry

_DOMAIN = b"anabranch audit head v1\x00"
"""Nothing else that is ever signed with the key begins like this."""

_US = 1_000_000
_LONGEST_LINE = 4096


@dataclass(frozen=True, slots=True)
class Head:
    """`hash` is that of the entry numbered `sequence`. `time_us`: when it was signed, in
    microseconds since the epoch of Unix. `public_key` has 32 bytes, `signature` 64."""

    trail: str
    sequence: int
    hash: bytes
    time_us: int
    key_id: str
    public_key: bytes
    signature: bytes = b""

    @property
    def time(self) -> float:
        """In seconds since the epoch of Unix."""
        return self.time_us / _US

    def signed_bytes(self) -> bytes:
        """What the signature is over. Each part is preceded by its length: no two heads share
        these bytes."""
        parts = (
            self.trail.encode(),
            self.sequence.to_bytes(8, "big"),
            self.hash,
            self.time_us.to_bytes(8, "big"),
            self.key_id.encode(),
            self.public_key,
        )
        return _DOMAIN + b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    def line(self) -> bytes:
        """How it is kept: one line of JSON, its end included."""
        value = {
            "hash": self.hash.hex(),
            "key_id": self.key_id,
            "public_key": self.public_key.hex(),
            "sequence": self.sequence,
            "signature": self.signature.hex(),
            "time_us": self.time_us,
            "trail": self.trail,
        }
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


class Signer:
    """Signs heads with one private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key().public_bytes_raw()
        self.key_id = key_id(self.public_key)

    def sign(self, last: ChainedEntry, *, time: float) -> Head:
        """The head of the trail that ends with `last`. `time` is in seconds since the epoch."""
        unsigned = Head(
            trail=last.entry.trail,
            sequence=last.entry.sequence,
            hash=last.hash,
            time_us=round(time * _US),
            key_id=self.key_id,
            public_key=self.public_key,
        )
        return _with(unsigned, self._key.sign(unsigned.signed_bytes()))


def key_id(public_key: bytes) -> str:
    """A short name of a public key: for people to compare, not to rely on."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def is_genuine(head: Head) -> bool:
    """Whether the head was signed with the private key of its own `public_key`. Whose key that is
    must be known from elsewhere."""
    if head.key_id != key_id(head.public_key):
        return False
    try:
        public = Ed25519PublicKey.from_public_bytes(head.public_key)
        public.verify(head.signature, head.signed_bytes())
    except (InvalidSignature, ValueError, OverflowError):
        return False
    return True


def parse_head(line: bytes) -> Head:
    """Reads what `Head.line` wrote; its signature is not looked at. Raises ValueError for anything
    else, be it only another spelling of the same."""
    if len(line) > _LONGEST_LINE:
        raise ValueError(f"the line has {len(line)} bytes")
    try:
        value = json.loads(line)
        head = Head(
            trail=value["trail"],
            sequence=value["sequence"],
            hash=bytes.fromhex(value["hash"]),
            time_us=value["time_us"],
            key_id=value["key_id"],
            public_key=bytes.fromhex(value["public_key"]),
            signature=bytes.fromhex(value["signature"]),
        )
        again = head.line()
    except (KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ValueError("the line is no head of an audit trail") from exc
    texts = isinstance(head.trail, str) and isinstance(head.key_id, str)
    numbers = all(type(n) is int and 0 <= n < 2**63 for n in (head.sequence, head.time_us))
    if again != line or not texts or not numbers:
        raise ValueError("the line is not as a trail writes its heads")
    return head


def _with(head: Head, signature: bytes) -> Head:
    return Head(
        head.trail,
        head.sequence,
        head.hash,
        head.time_us,
        head.key_id,
        head.public_key,
        signature,
    )
