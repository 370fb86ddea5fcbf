"""Small pictures in every format, and files that only say that they are pictures."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image

from anabranch.v1 import generation_pb2 as pb

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF"}


def encoded(
    colour: Any = "red",
    media_type: str = "image/png",
    size: tuple[int, int] = (100, 60),
    mode: str = "RGB",
    **how: Any,
) -> bytes:
    """A picture of one colour."""
    sink = io.BytesIO()
    Image.new(mode, size, colour).save(sink, FORMATS[media_type], **how)
    return sink.getvalue()


def animated(*colours: str, media_type: str = "image/gif") -> bytes:
    """Several frames."""
    frames = [Image.new("RGB", (100, 60), colour) for colour in colours]
    sink = io.BytesIO()
    frames[0].save(sink, FORMATS[media_type], save_all=True, append_images=frames[1:])
    return sink.getvalue()


def png_that_says(width: int, height: int, pixels: bytes = b"\0") -> bytes:
    """A PNG whose header says a size, whatever pixels it holds: a bomb if they are few."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


def part(data: bytes, media_type: str = "image/png") -> pb.ContentPart:
    """An image part with these bytes."""
    return pb.ContentPart(image=pb.Image(data=data, media_type=media_type))


def linked(uri: str, media_type: str = "image/png") -> pb.ContentPart:
    """An image part with an address."""
    return pb.ContentPart(image=pb.Image(uri=uri, media_type=media_type))


def user(*parts: pb.ContentPart | str) -> pb.Message:
    """A user's turn of texts and images."""
    content = [pb.ContentPart(text=p) if isinstance(p, str) else p for p in parts]
    return pb.Message(role=pb.ROLE_USER, content=content)
