"""Header blocks and what gRPC writes into them: metadata, timeouts, statuses; its spellings.

Sent fields are literals that no table remembers, so an encoder has no state; received ones
go through hpack's decoder, bounded before and after decompression. RFC 7541; PROTOCOL-HTTP2 of
gRPC.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

import hpack
from hpack.exceptions import HPACKError, OversizedHeaderListError

from services.chassis.http2.frames import Code, ConnectionFault

Fields = list[tuple[str, str]]
Metadata = tuple[tuple[str, str | bytes], ...]

_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNPRINTED = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
_NAME = re.compile(r":?[0-9a-z_.-]+")
_VALUE = re.compile(r"[ -~]*")
_PSEUDO = frozenset((":method", ":scheme", ":path", ":authority"))
# Of HTTP/1; RFC 9113, 8.2.2.
_OF_CONNECTIONS = frozenset(
    ("connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade")
)
# A few bytes make a value of their own: without a bound, 8 KiB of commas are 8,000 of them.
_MOST_JOINED = 64


class HeadersTooLarge(Exception):
    """A header list beyond the limit. The connection's table is as the peer believes it to be."""


class HeaderReader:
    """Reads the header blocks of one connection; they build on each other."""

    # A list this many times the limit is still decoded, so that the refusal can be of the one
    # call; beyond it the connection ends.
    _SLACK = 4

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._decoder = hpack.Decoder(max_header_list_size=limit * self._SLACK)

    def read(self, block: bytes) -> Fields:
        """The fields, in order.

        Raises HeadersTooLarge when they are beyond the limit and ConnectionFault when
        they are so by far, or are no header block.
        """
        if _table_updates(block) > 2:
            raise ConnectionFault(Code.COMPRESSION_ERROR, "headers that only resize the table")
        try:
            decoded = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError as exc:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "headers beyond every limit") from exc
        except HPACKError as exc:
            raise ConnectionFault(Code.COMPRESSION_ERROR, "headers that cannot be read") from exc
        size = 0
        fields: Fields = []
        for name, value in decoded:
            size += len(name) + len(value) + 32
            fields.append((name.decode("latin-1"), value.decode("latin-1")))
        if size > self._limit:
            raise HeadersTooLarge
        return fields


def _table_updates(block: bytes) -> int:
    """Table sizes at the start of a block, counted to 3. Two can be meant: RFC 7541, 4.2."""
    at = count = 0
    while count < 3 and at < len(block) and block[at] & 0xE0 == 0x20:
        count += 1
        longer = block[at] & 0x1F == 0x1F
        at += 1
        while longer and at < len(block):
            longer = block[at] >= 0x80
            at += 1
    return count


def literal(name: str, value: str | bytes) -> bytes:
    """One field, as a literal that is not indexed."""
    raw = value if isinstance(value, bytes) else value.encode("latin-1", "replace")
    return b"\x00" + _string(name.encode("ascii")) + _string(raw)


def _string(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,)) + text
    size -= 127
    head = bytearray((127,))
    while size >= 128:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + text


def block(fields: Iterable[tuple[str, str | bytes]]) -> bytes:
    """A header block of metadata; binary values (`-bin`) in base64.

    Raises ValueError for what a peer would take for malformed.
    """
    parts: list[bytes] = []
    for name, value in fields:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of metadata")
        if name.endswith("-bin"):
            value = _base64(value)
        elif not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise ValueError(f"the value of {name} is not printable ASCII")
        parts.append(literal(name, value))
    return b"".join(parts)


def _base64(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return base64.b64encode(raw).rstrip(b"=")


def metadata(fields: Iterable[tuple[str, str]]) -> Metadata:
    """What a handler or a caller sees of the fields. Raises ValueError for bad base64."""
    seen: list[tuple[str, str | bytes]] = []
    for name, value in fields:
        if name.startswith(":") or name in ("te", "content-type"):
            continue
        if name.endswith("-bin"):
            for part in value.split(",", _MOST_JOINED):
                padded = part.strip() + "=" * (-len(part.strip()) % 4)
                try:
                    seen.append((name, base64.b64decode(padded.encode("latin-1"), validate=True)))
                except (binascii.Error, UnicodeError) as exc:
                    raise ValueError(f"{name} is not base64") from exc
        else:
            seen.append((name, value))
    return tuple(seen)


def are_well_formed(fields: Fields) -> bool:
    """Whether they may be a request's: RFC 9113, 8.2 and 8.3."""
    pseudo: set[str] = set()
    regular = False
    for name, value in fields:
        if not _NAME.fullmatch(name) or "\r" in value or "\n" in value or "\0" in value:
            return False
        if name[0] != ":":
            regular = True
            if name in _OF_CONNECTIONS:
                return False
        elif regular or name in pseudo or name not in _PSEUDO:
            return False
        else:
            pseudo.add(name)
    return True


def timeout(value: str) -> float | None:
    """Seconds of a grpc-timeout; None when it is none."""
    found = _TIMEOUT.fullmatch(value)
    return int(found[1]) * _UNITS[found[2]] if found else None


def is_grpc(content_type: str) -> bool:
    """Whether a content-type is gRPC's, of whichever codec."""
    kind = "application/grpc"
    return content_type.startswith(kind) and content_type[len(kind) :][:1] in ("", "+", ";")


def spelled_timeout(seconds: float) -> str:
    """A grpc-timeout, of at most eight digits."""
    milliseconds = max(int(seconds * 1000), 0)
    return f"{milliseconds}m" if milliseconds < 10**8 else f"{min(int(seconds), 10**8 - 1)}S"


def spelled_message(text: str) -> str:
    """A grpc-message: percent-encoded where HTTP would not carry it."""
    return quote(text, safe=_UNPRINTED, errors="replace")


def read_message(value: str) -> str:
    """The text of a grpc-message."""
    return unquote(value, errors="replace")


def spelled_peer(name: object) -> str:
    """The peer in gRPC's spelling."""
    if isinstance(name, tuple) and str(name[0]).startswith("::ffff:"):
        return f"ipv4:{name[0][7:]}:{name[1]}"  # to a socket of both families
    if isinstance(name, tuple) and len(name) >= 4:
        return f"ipv6:[{name[0]}]:{name[1]}"
    if isinstance(name, tuple):
        return f"ipv4:{name[0]}:{name[1]}"
    return "unix:"
