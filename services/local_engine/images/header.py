"""What the first bytes of an image say of it: its format and size. Pure; no pixel is decoded.

PNG (W3C PNG, 5.6 and 11.2.2), JPEG (ITU-T T.81, B.2.2), GIF (GIF89a, 18) and WebP (RFC 9649).
Of animations the first frame counts. A file that lies here is found out when it is decoded.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")

_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_SCANS = 100
"""Of a progressive JPEG. Each costs a pass over all pixels, and takes a few bytes to ask for."""
_START_OF_SCAN = b"\xff\xda"
MOST_MARKERS = 1024
"""Of a JPEG, before it says its size. A colour profile takes 255 at most."""
_MARKER = re.compile(rb"\xff{1,4096}+[^\xff]", re.DOTALL)
"""A marker after fill bytes, of which no encoder writes more than a few."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Format and size in pixels."""

    media_type: str
    width: int
    height: int


def read_header(data: bytes) -> ImageHeader:
    """Raises ValueError, whose text completes "the image …"."""
    try:
        if data.startswith(_PNG):
            return _png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return ImageHeader("image/gif", *struct.unpack_from("<HH", data, 6))
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp(data)
    except struct.error:
        raise ValueError("ends within its header") from None
    raise ValueError("is none of PNG, JPEG, WebP and GIF")


def _png(data: bytes) -> ImageHeader:
    length, kind, width, height = struct.unpack_from(">I4sII", data, 8)
    if kind != b"IHDR" or length != 13:
        raise ValueError("does not begin as a PNG does")
    return ImageHeader("image/png", width, height)


def _jpeg(data: bytes) -> ImageHeader:
    at = 2
    for _ in range(MOST_MARKERS):
        found = _MARKER.match(data, at)
        if found is None:
            if at < len(data) and data[at] != 0xFF:
                raise ValueError("is a JPEG with something between its segments")
            raise ValueError("ends within its header")
        marker, at = data[found.end() - 1], found.end()
        if marker in _BARE:
            continue
        if marker in (0xD9, 0xDA):
            raise ValueError("is a JPEG that does not say its size")
        (length,) = struct.unpack_from(">H", data, at)
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            if data.count(_START_OF_SCAN, at) > _MOST_SCANS:
                raise ValueError(f"has more than {_MOST_SCANS} scans")
            return ImageHeader("image/jpeg", width, height)
        if length < 2:
            raise ValueError("is a JPEG with a segment of no length")
        at += length
    raise ValueError(f"is a JPEG that does not say its size in its first {MOST_MARKERS} markers")


def _webp(data: bytes) -> ImageHeader:
    kind = data[12:16]
    if kind == b"VP8X":
        low, high = struct.unpack_from("<IH", data, 24)  # two numbers of 24 bits
        return ImageHeader("image/webp", 1 + (low & 0xFFFFFF), 1 + ((low >> 24) | (high << 8)))
    if kind == b"VP8 ":
        start, width, height = struct.unpack_from("<3sHH", data, 23)
        if start != b"\x9d\x01\x2a":
            raise ValueError("is a WebP without a first frame")
        return ImageHeader("image/webp", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", data, 20)
        if signature != 0x2F:
            raise ValueError("is a WebP without a first frame")
        return ImageHeader("image/webp", 1 + (bits & 0x3FFF), 1 + ((bits >> 14) & 0x3FFF))
    raise ValueError("is a WebP of an unknown kind")
