"""Decoding pictures: whatever is wrong with a file, the caller is told the same.

Rendering is tried on the real engine, in test_vision_engine.py.
"""

from __future__ import annotations

import struct

import pytest

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from services.local_engine.engine import Picture
from services.local_engine.images.header import read_header
from services.local_engine.on_vllm.pictures import _decode
from tests.support.pictures import encoded, png_that_says

NO_FRAME = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\x63\0\0\x3b\0\0" + bytes(16)
"""Of the extended form, and then nothing: no decoder knows it."""


STRUCT_ERROR = (
    "0004011200030000000100060000010e00090000000101ff001a010e000600000001080000010111000900000001"
    "ff001aff00000000"
)
TYPE_ERROR = (
    "0004011200030000000100060000010e000800000001ffff01000100000300000001ff0800ff011a000200000002"
    "001a081a0000000000000000000000"
)
"""Values of types that their tags do not have, which Pillow finds out when it writes them again."""


def turned(entries: str) -> bytes:
    """A photograph that lies on its side, by the first of these entries of EXIF, in hex."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + bytes.fromhex(entries)
    photograph = encoded(media_type="image/jpeg")
    length = struct.pack(">H", len(exif) + 2)
    return photograph[:2] + b"\xff\xe1" + length + exif + photograph[2:]


def refusal(data: bytes) -> Fault:
    with pytest.raises(Fault) as refused:
        _decode(Picture("messages[0].content[1].image.data", data, read_header(data), ""))
    return refused.value


@pytest.mark.parametrize(
    "data",
    [
        NO_FRAME,
        png_that_says(1000, 900),
        encoded()[:-30],
        encoded(media_type="image/jpeg")[:-60],
        turned(STRUCT_ERROR),
        turned(TYPE_ERROR),
    ],
    ids=["no frame", "few pixels", "cut png", "cut jpeg", "exif out of range", "exif of a type"],
)
def test_cve_2026_22778_what_decoders_say_of_a_broken_file_is_not_told(data):
    fault = refusal(data)
    assert fault.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
    (violation,) = fault.violations
    assert violation.field == "messages[0].content[1].image.data"
    assert violation.description == "cannot be decoded"
    assert "0x" not in f"{fault} {fault.message}"
