"""How events are framed on the wire: server-sent events, lines of JSON, AWS event-stream frames."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
EVENT_STREAM = "application/vnd.amazon.eventstream"

_STRING = 7  # the type of a header's value


def compact(document: Any) -> bytes:
    """JSON in UTF-8, as dialects put it into events."""
    return json.dumps(document, ensure_ascii=False).encode()


def sse(document: Any, event: str = "") -> bytes:
    """One server-sent event; `event` is its name, where the dialect gives names."""
    head = f"event: {event}\n".encode() if event else b""
    return head + b"data: " + compact(document) + b"\n\n"


def ndjson(document: Any) -> bytes:
    """One line."""
    return compact(document) + b"\n"


def frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One frame of an AWS event stream, all header values being strings.

    Its prelude holds the lengths of the whole and of the headers, and their own checksum; the
    payload is followed by a CRC-32 of all before it. Numbers are big-endian.
    """
    encoded = b"".join(
        bytes([len(name)])
        + name.encode()
        + struct.pack(">BH", _STRING, len(value.encode()))
        + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack(">II", len(encoded) + len(payload) + 16, len(encoded))
    begun = prelude + struct.pack(">I", zlib.crc32(prelude)) + encoded + payload
    return begun + struct.pack(">I", zlib.crc32(begun))
