"""Replays recorded provider streams: their bytes, in pieces of random size."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tools.provider_simulator.voices import Piece
from tools.provider_simulator.wire import EVENT_STREAM, NDJSON, SSE

PREFIX = "recording:"
"""What the name of a model begins with that stands for a recording: recording:DIALECT/NAME."""

DIRECTORY = Path(__file__).resolve().parent.parent.parent / "tests" / "recordings"
_MEDIA_TYPES = {".sse": SSE, ".ndjson": NDJSON, ".eventstream": EVENT_STREAM}
_NAME = re.compile(r"[a-z0-9_]+/[A-Za-z0-9_-]+")
_LARGEST = 64


@dataclass(frozen=True)
class Recorded:
    """One recorded stream."""

    data: bytes
    media_type: str

    def pieces(self, seed: str) -> Iterator[Piece]:
        """The bytes in pieces of 1 to 64; the same seed gives the same ones."""
        random = Random(seed)  # noqa: S311 - where bytes are split is no secret
        start = 0
        while start < len(self.data):
            end = start + random.randint(1, _LARGEST)
            yield Piece(self.data[start:end], output=True)
            start = end


def find(directory: Path, model: str) -> Recorded | None:
    """The recording that a model's name stands for; None where there is no such one."""
    name = model.removeprefix(PREFIX)
    if _NAME.fullmatch(name) is None:
        return None
    for suffix, media_type in _MEDIA_TYPES.items():
        path = directory / f"{name}{suffix}"
        if path.is_file():
            return Recorded(path.read_bytes(), media_type)
    return None
