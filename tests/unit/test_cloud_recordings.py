"""Every recorded stream gives exactly what is written beside it, however its bytes are split."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cloud_proxy.answer import ProviderFailure
from tests.support.recordings import Recording, all_recordings, is_whole, split

RECORDINGS = all_recordings()
each = pytest.mark.parametrize("recording", RECORDINGS, ids=lambda r: r.name)


def outcome(recording: Recording, pieces: list[bytes]) -> tuple[str, object]:
    try:
        return "whole", recording.hear(pieces).document()
    except ProviderFailure as failure:
        told = {"kind": str(failure.kind)}
        if failure.http_status is not None:
            told["http_status"] = str(failure.http_status)
        if failure.code:
            told["code"] = failure.code
        return "failed", told


def expected(recording: Recording) -> tuple[str, object]:
    if recording.failure is not None:
        return "failed", {name: str(value) for name, value in recording.failure.items()}
    return "whole", recording.expect


@each
def test_recording_gives_what_is_written_beside_it(recording):
    assert outcome(recording, [recording.data]) == expected(recording)


@each
def test_single_bytes_give_the_same(recording):
    assert outcome(recording, [bytes([b]) for b in recording.data]) == expected(recording)


@each
@given(cuts=st.lists(st.integers(0, 100_000), max_size=40))
def test_any_split_gives_the_same(recording, cuts):
    assert outcome(recording, split(recording.data, cuts)) == expected(recording)


@each
def test_no_truncation_passes_for_an_answer(recording):
    if recording.failure is not None:
        pytest.skip("it is a failure already")
    generator = random.Random(recording.name)
    for end in sorted(generator.sample(range(len(recording.data)), min(200, len(recording.data)))):
        kind, told = outcome(recording, [recording.data[:end]])
        # Cut after its terminal marker it is whole, and then nothing may be missing.
        assert kind == "failed" or is_whole(told, recording.expect), f"cut after {end} bytes"
