"""Joins the frames that a slow caller has not taken yet, so that they cost what they say. Pure.

Text and token ids of one choice concatenate: a caller that falls behind gets fewer
and larger chunks, never other ones, and what waits for it is bounded by its
answers' length instead of by their number of steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.message import DecodeError

from anabranch.v1 import generation_pb2 as pb

Frame = tuple[int, bytes | None, bytes | None, bool, int]
"""Stream number, serialised chunk or none, serialised error or none, last, output tokens."""


def coalesce(frames: Sequence[Frame]) -> list[Frame]:
    """The same news in as few frames as possible, ordered within each stream.

    A stream that has one frame keeps it undecoded.
    """
    streams: dict[int, list[Frame]] = {}
    for frame in frames:
        streams.setdefault(frame[0], []).append(frame)
    joined: list[Frame] = []
    for waiting in streams.values():
        joined += waiting if len(waiting) == 1 else _of_one_stream(waiting)
    return joined


def _of_one_stream(frames: Sequence[Frame]) -> list[Frame]:
    """One frame a choice, the one of the last chunk at the end; an error stays by itself."""
    joined: list[Frame] = []
    ready: list[Frame] = []
    for frame in frames:
        # A number may be used again once its stream has ended: the two are not one answer.
        ready.append(frame)
        if frame[3]:
            joined += _of_one_answer(ready)
            ready = []
    return joined + _of_one_answer(ready)


def _of_one_answer(frames: Sequence[Frame]) -> list[Frame]:
    chunks = [frame for frame in frames if frame[1] is not None]
    others = [frame for frame in frames if frame[1] is None]
    if len(chunks) < 2:
        return [*chunks, *others]
    number = frames[0][0]
    try:
        choices = _by_choice([frame[1] or b"" for frame in chunks])
    except DecodeError:
        return list(frames)  # the caller is to see for itself what it was sent
    ends = chunks[-1][3]
    final = next(reversed(choices))
    return [
        *(
            (
                number,
                join(chunk for _, chunk in parts).SerializeToString(),
                None,
                ends and index == final,
                sum(chunks[at][4] for at, _ in parts),
            )
            for index, parts in choices.items()
        ),
        *others,
    ]


def coalesce_chunks(chunks: Sequence[bytes]) -> list[bytes]:
    """The serialised chunks of one answer as one a choice, the one that ends it at the end."""
    try:
        choices = _by_choice(chunks)
    except DecodeError:
        return list(chunks)
    return [
        join(chunk for _, chunk in parts).SerializeToString() if len(parts) > 1 else chunks[at]
        for parts in choices.values()
        for at, _ in parts[:1]
    ]


def _by_choice(chunks: Sequence[bytes]) -> dict[int, list[tuple[int, pb.GenerateChunk]]]:
    """Each choice's chunks with their places. Raises DecodeError.

    The choice that spoke last is the last one: the end of the answer comes with it.
    """
    choices: dict[int, list[tuple[int, pb.GenerateChunk]]] = {}
    for at, raw in enumerate(chunks):
        chunk = pb.GenerateChunk.FromString(raw)
        parts = choices.pop(chunk.index, None) or []
        parts.append((at, chunk))
        choices[chunk.index] = parts
    return choices


def join(chunks: Iterable[pb.GenerateChunk]) -> pb.GenerateChunk:
    """Chunks of one choice as one. The position is the first one's, the end the last one's."""
    texts: list[str] = []
    reasonings: list[str] = []
    whole: pb.GenerateChunk | None = None
    for chunk in chunks:
        texts.append(chunk.text)
        reasonings.append(chunk.reasoning)
        if whole is None:
            whole = pb.GenerateChunk()
            whole.CopyFrom(chunk)
            continue
        # Lists append and later scalars win; texts would be replaced, so they are joined below.
        first = whole.first_token
        whole.MergeFrom(chunk)
        whole.first_token = first
    if whole is None:
        raise ValueError("nothing to join")
    whole.text = "".join(texts)
    whole.reasoning = "".join(reasonings)
    return whole
