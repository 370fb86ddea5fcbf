"""Reads what a safetensors file says of itself, and whether that is true of it. No tensor is read.

The format: 8 bytes, the header's length, little-endian; the header, a JSON object of name to
`dtype`, `shape` and `data_offsets`, `__metadata__` apart; then the data, whose every byte belongs
to exactly one tensor. https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

MOST_HEADER_BYTES = 16 * 1024 * 1024
"""Of one file; the largest have a few MiB. More is refused before it is read."""

_MOST_PARTS = 3_000_000
"""Objects and lists of a header, of which a tensor has three: what is built of them takes many
times the bytes that they are written in."""
_MOST_DIMENSIONS = 64
_MOST_NUMBER = 2**63 - 1

_LENGTH_BYTES = 8
_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


class BadFile(Exception):
    """The file cannot be served; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name. Raises BadFile and OSError."""
    name = path.name
    # A pipe would be waited for without end, by whoever opens or reads it.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise BadFile(f"{name} is no file")
        size = about.st_size
        start = file.read(_LENGTH_BYTES)
        if len(start) < _LENGTH_BYTES:
            raise BadFile(f"{name} is no safetensors file: it has only {size} bytes")
        length = int.from_bytes(start, "little")
        if length > min(MOST_HEADER_BYTES, size - _LENGTH_BYTES):
            raise BadFile(
                f"{name} is damaged or no safetensors file: its header would have {length} bytes, "
                f"the file has {size}"
            )
        raw = file.read(length)
    if raw.count(b"{") + raw.count(b"[") > _MOST_PARTS:
        raise BadFile(f"{name} is damaged: its header has more parts than a million tensors")
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadFile(f"{name} is damaged: its header is no JSON") from None
    if not isinstance(header, dict):
        raise BadFile(f"{name} is damaged: its header is no JSON object")
    header.pop("__metadata__", None)
    spans: list[tuple[int, int, str]] = []
    found: dict[str, Tensor] = {}
    for key, entry in header.items():
        tensor, begin, end = _entry(name, key, entry)
        found[key] = tensor
        spans.append((begin, end, key))
    _check_spans(name, spans, size - _LENGTH_BYTES - length)
    return found


def _entry(file: str, key: str, entry: Any) -> tuple[Tensor, int, int]:
    try:
        dtype, shape = entry["dtype"], entry["shape"]
        begin, end = entry["data_offsets"]
    except (LookupError, TypeError, ValueError):
        raise BadFile(f"{file} is damaged: its header says too little of {key}") from None
    numbers: list[Any] = [None]
    if isinstance(shape, list) and len(shape) <= _MOST_DIMENSIONS:
        numbers = [begin, end, *shape]
    if not isinstance(dtype, str) or not all(map(_is_size, numbers)):
        raise BadFile(f"{file} is damaged: its header says of {key} what cannot be")
    bits = _BITS.get(dtype)
    if bits is None:
        raise BadFile(f"{file}: {key} has the unknown type {dtype}")
    expected = (prod(shape) * bits + 7) // 8
    if end - begin != expected:
        raise BadFile(
            f"{file} is damaged: {key} of {dtype}{shape} takes {expected} bytes, "
            f"and its header gives it {end - begin}"
        )
    return Tensor(dtype, tuple(shape)), begin, end


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number <= _MOST_NUMBER


def _check_spans(file: str, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    """Raises BadFile unless the tensors fill the data without gap or overlap."""
    at = 0
    for begin, end, key in sorted(spans):
        if begin != at:
            raise BadFile(f"{file} is damaged: {key} does not follow the tensor before it")
        at = end
    if at != data_bytes:
        what = "cut off" if at > data_bytes else "damaged"
        raise BadFile(
            f"{file} is {what}: its tensors take {at} bytes, and {data_bytes} follow the header"
        )
