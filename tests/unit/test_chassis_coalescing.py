"""Joined frames say what the single ones said."""

from hypothesis import given
from hypothesis import strategies as st

from anabranch.v1 import generation_pb2 as pb
from services.chassis.answers import AnswerBuilder
from services.chassis.coalescing import coalesce


def answer(frames) -> dict[int, pb.GenerateResponse]:
    """What a caller makes of the frames, stream by stream."""
    builders: dict[int, AnswerBuilder] = {}
    for number, raw, _, _, _ in frames:
        if raw is not None:
            builders.setdefault(number, AnswerBuilder()).add(pb.GenerateChunk.FromString(raw))
    return {number: builder.response() for number, builder in builders.items()}


@st.composite
def sessions(draw):
    """Frames of a few streams with a few choices each, interleaved at random."""
    frames = []
    position: dict[tuple[int, int], int] = {}
    alive = set(range(1, draw(st.integers(1, 4)) + 1))
    for _ in range(draw(st.integers(0, 40))):
        if not alive:
            break
        number = draw(st.sampled_from(sorted(alive)))
        index = draw(st.integers(0, 1))
        ids = draw(st.lists(st.integers(0, 50_000), max_size=3))
        first = position.get((number, index), 0)
        position[number, index] = first + len(ids)
        chunk = pb.GenerateChunk(
            index=index,
            first_token=first,
            text=draw(st.text(max_size=4)),
            reasoning=draw(st.text(max_size=2)),
            token_ids=ids,
            tool_calls=[pb.ToolCall(index=0, arguments=draw(st.text(max_size=3)))]
            if draw(st.booleans())
            else [],
        )
        if not position[number, index]:
            chunk.request_id = "r"
        last = draw(st.integers(0, 9)) == 0
        if last:
            chunk.finish_reason = pb.FINISH_REASON_STOP
            chunk.usage.completion_tokens = 7
            chunk.receipt.backend_id = "b"
            alive.discard(number)
        frames.append((number, chunk.SerializeToString(), None, last, len(ids)))
    return frames


@given(sessions(), st.integers(0, 40))
def test_a_caller_hears_the_same_whatever_was_joined(frames, cut):
    joined = coalesce(frames)
    assert answer(joined) == answer(frames)
    # Joined in two goes, as while a caller stays slow.
    assert answer(coalesce([*coalesce(frames[:cut]), *frames[cut:]])) == answer(frames)


@given(sessions())
def test_tokens_are_counted_and_each_end_comes_once_and_last(frames):
    joined = coalesce(frames)
    for number in {frame[0] for frame in frames}:
        mine = [frame for frame in joined if frame[0] == number]
        before = [frame for frame in frames if frame[0] == number]
        assert sum(f[4] for f in mine) == sum(f[4] for f in before)
        assert [f[3] for f in mine[:-1]] == [False] * (len(mine) - 1)
        assert mine[-1][3] == before[-1][3]
        assert len(mine) <= 2, "one frame a choice"


def test_a_single_frame_is_not_decoded():
    frame = (1, b"\xff not a chunk", None, False, 1)
    assert coalesce([frame]) == [frame]


def test_an_error_stays_after_what_came_before_it():
    chunk = pb.GenerateChunk(text="a").SerializeToString()
    error = (1, None, b"status", True, 0)
    joined = coalesce([(1, chunk, None, False, 0), (1, chunk, None, False, 0), error])
    assert [f[2] for f in joined] == [None, b"status"]
    assert pb.GenerateChunk.FromString(joined[0][1]).text == "aa"


def test_a_number_that_is_used_again_is_another_answer():
    def frame(text: str, last: bool):
        raw = pb.GenerateChunk(text=text, finish_reason=int(last)).SerializeToString()
        return (1, raw, None, last, 0)

    joined = coalesce([frame("a", False), frame("b", True), frame("c", False), frame("d", True)])
    texts = [pb.GenerateChunk.FromString(f[1]).text for f in joined]
    assert (texts, [f[3] for f in joined]) == (["ab", "cd"], [True, True])


def test_ten_thousand_steps_of_a_stream_become_one_small_frame():
    frames = []
    for step in range(10_000):
        chunk = pb.GenerateChunk(first_token=step, text=" word", token_ids=[step % 50_000])
        frames.append((1, chunk.SerializeToString(), None, False, 1))
    (joined,) = coalesce(frames)
    assert joined[4] == 10_000
    assert len(joined[1]) < 100_000
