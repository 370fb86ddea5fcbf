"""No fault of a stream passes for an answer: every recording, every fault, many chunk boundaries.

An outcome is whole only when nothing of it is missing; everything else must be a failure.
"""

from __future__ import annotations

import random

import pytest

from services.cloud_proxy.answer import ProviderFailure
from services.cloud_proxy.dialects import Framing
from tests.support.recordings import Recording, all_recordings, is_whole, split
from tests.support.stream_faults import FAULTS, flipped_byte

BOUNDARIES = 200
WHOLE = [r for r in all_recordings() if r.expect is not None]
each = pytest.mark.parametrize("recording", WHOLE, ids=lambda r: r.name)


def pieces_of(data: bytes, chance: random.Random) -> list[bytes]:
    """The bytes cut at up to 20 places."""
    return split(data, [chance.randrange(1 << 30) for _ in range(chance.randrange(20))])


def heard(recording: Recording, pieces: list[bytes]) -> object:
    """What came out, or None for a failure."""
    try:
        return recording.hear(pieces).document()
    except ProviderFailure:
        return None


@each
@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_stream_fails_or_is_whole(recording, fault):
    for seed in range(BOUNDARIES):
        chance = random.Random(f"{recording.name} {fault} {seed}")
        data = FAULTS[fault](recording, chance)
        found = heard(recording, pieces_of(data, chance))
        assert found is None or is_whole(found, recording.expect), f"{fault}, seed {seed}"
        if fault == "keepalives":
            assert found == recording.expect, f"seed {seed}"


@pytest.mark.parametrize(
    "recording",
    [r for r in WHOLE if r.framing is Framing.AWS_EVENT_STREAM],
    ids=lambda r: r.name,
)
def test_checksums_tell_of_every_flipped_byte(recording):
    for seed in range(BOUNDARIES):
        chance = random.Random(f"{recording.name} {seed}")
        assert heard(recording, pieces_of(flipped_byte(recording, chance), chance)) is None
