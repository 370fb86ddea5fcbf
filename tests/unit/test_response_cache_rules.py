"""Which requests and answers the cache takes, and what it makes of them: rules and values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.v1 import generation_pb2 as pb
from services.chassis.answers import AnswerBuilder
from services.router.response_cache.cacheable import is_deterministic, is_keepable
from services.router.response_cache.entry import (
    Entry,
    entry_of,
    own_part,
    pack,
    packed_size,
    time_left,
    unpack,
)
from services.router.response_cache.memory import OVERHEAD_BYTES, MemoryTier

KEY = bytes(range(32))
GREEDY = pb.Sampling(temperature=0)


def ask(sampling: pb.Sampling = GREEDY, **fields) -> pb.GenerateRequest:
    return pb.GenerateRequest(model="river", sampling=sampling, **fields)


# Which requests


@pytest.mark.parametrize(
    "request_",
    [
        ask(),
        ask(pb.Sampling(top_k=1, temperature=0.7)),
        ask(pb.Sampling(temperature=0, n=1, seed=4)),
        ask(routing=pb.Routing(residency=pb.RESIDENCY_LOCAL_ONLY, affinity_key="k")),
        ask(
            messages=[
                pb.Message(content=[pb.ContentPart(image=pb.Image(data=b"png"))]),
            ]
        ),
    ],
)
def test_greedy_requests_have_one_answer(request_):
    assert is_deterministic(request_)


@pytest.mark.parametrize(
    "request_",
    [
        pb.GenerateRequest(model="river"),
        ask(pb.Sampling()),
        ask(pb.Sampling(temperature=0.1)),
        ask(pb.Sampling(seed=4)),
        ask(pb.Sampling(top_k=0)),
        ask(pb.Sampling(top_k=-1)),
        ask(pb.Sampling(top_k=2)),
        ask(pb.Sampling(temperature=0, n=2)),
        ask(routing=pb.Routing(backend_id="engine-1")),
        ask(
            messages=[
                pb.Message(content=[pb.ContentPart(text="what is it?")]),
                pb.Message(content=[pb.ContentPart(image=pb.Image(uri="https://x/cat.png"))]),
            ]
        ),
    ],
)
def test_other_requests_may_have_several(request_):
    assert not is_deterministic(request_)


# Which answers


@pytest.mark.parametrize("reason", pb.FinishReason.values())
def test_only_answers_that_came_to_their_own_end_are_kept(reason):
    whole = (pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_TOOL_CALLS)
    assert is_keepable(pb.GenerateChunk(finish_reason=reason)) == (reason in whole)


def test_answers_that_were_gone_on_with_elsewhere_are_not_kept():
    receipt = pb.RouteReceipt(resumed_at_tokens=[3])
    assert not is_keepable(pb.GenerateChunk(finish_reason=pb.FINISH_REASON_STOP, receipt=receipt))


def test_answers_that_the_router_ended_itself_are_not_kept():
    usage = pb.Usage(source=pb.Usage.SOURCE_PARTIAL)
    assert not is_keepable(pb.GenerateChunk(finish_reason=pb.FINISH_REASON_LENGTH, usage=usage))


# As what they are kept


def whole(chunks: list[bytes]) -> pb.GenerateResponse:
    builder = AnswerBuilder()
    for raw in chunks:
        builder.add(pb.GenerateChunk.FromString(raw))
    return builder.response()


@given(st.lists(st.tuples(st.text(max_size=3), st.lists(st.integers(0, 9), max_size=2))))
def test_a_kept_answer_says_what_the_stream_said_and_its_caller_reads_its_own_receipt(parts):
    position = 0
    stream = []
    for place, (text, ids) in enumerate(parts):
        chunk = pb.GenerateChunk(text=text, first_token=position, token_ids=ids)
        if place == 0:
            chunk.request_id = "first"
        position += len(ids)
        stream.append(chunk.SerializeToString())
    last = pb.GenerateChunk(
        finish_reason=pb.FINISH_REASON_STOP,
        first_token=position,
        usage=pb.Usage(prompt_tokens=7, completion_tokens=position),
        receipt=pb.RouteReceipt(
            tier=pb.TIER_CLOUD,
            backend_id="cloud-1",
            served_model="river-8b",
            cost_microusd=12,
            masked_entities=2,
            attempts=[pb.RouteAttempt(backend_id="cloud-1")],
        ),
    )
    entry = entry_of(stream, last, position, 1000.0)
    assert entry is not None
    assert unpack(KEY, pack(KEY, entry)) == entry

    own = own_part(
        request_id="second", source=pb.CACHE_SOURCE_DISK, ttft=1.5, resolved_model="river"
    )
    served = whole([entry.chunk + own])
    said = whole([*stream, last.SerializeToString()])
    assert served.choices == said.choices
    assert served.usage == said.usage
    assert served.request_id == "second"
    expected = pb.RouteReceipt(
        tier=pb.TIER_CLOUD,
        backend_id="cloud-1",
        served_model="river-8b",
        cache=pb.CACHE_SOURCE_DISK,
        resolved_model="river",
    )
    expected.ttft.FromMilliseconds(1500)
    assert served.receipt == expected


def test_what_cannot_be_joined_is_not_kept():
    last = pb.GenerateChunk(finish_reason=pb.FINISH_REASON_STOP)
    assert entry_of([b"\xff\xff"], last, 1, 0.0) is None
    other_choice = pb.GenerateChunk(index=1, text="x").SerializeToString()
    assert entry_of([other_choice], last, 1, 0.0) is None


@given(st.data())
def test_anything_but_the_whole_entry_of_the_key_is_refused(data):
    entry = Entry(5.0, 3, b"some answer")
    raw = pack(KEY, entry)
    damaged = bytearray(raw[: data.draw(st.integers(0, len(raw)))])
    if len(damaged) == len(raw):
        place = data.draw(st.integers(0, len(raw) - 1))
        damaged[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="entry"):
        unpack(KEY, bytes(damaged))


def test_an_entry_of_another_key_is_refused():
    with pytest.raises(ValueError, match="key"):
        unpack(bytes(32), pack(KEY, Entry(0.0, 1, b"theirs")))


def test_the_packed_size_is_known_before():
    assert len(pack(KEY, Entry(0.0, 1, b"12345"))) == packed_size(5)


def test_an_answer_ages_and_one_from_the_future_is_none():
    entry = Entry(1000.0, 1, b"")
    assert time_left(entry, 60, 1010.0) == 50
    assert time_left(entry, 60, 1060.0) == 0
    assert time_left(entry, 60, 990.0) > 0  # clocks differ by a little
    assert time_left(entry, 60, 100.0) == 0


# Memory


def entry(size: int) -> Entry:
    return Entry(0.0, 1, bytes(size))


def test_the_least_recently_used_answer_leaves_first():
    memory = MemoryTier(3 * (100 + OVERHEAD_BYTES))
    for key in (b"a", b"b", b"c"):
        memory.put(key, entry(100))
    assert memory.get(b"a") is not None
    memory.put(b"d", entry(100))
    assert memory.get(b"b") is None
    assert all(memory.get(key) is not None for key in (b"a", b"c", b"d"))


def test_an_answer_larger_than_the_memory_displaces_nothing():
    memory = MemoryTier(1000)
    memory.put(b"a", entry(100))
    memory.put(b"b", entry(1000))
    assert memory.get(b"a") is not None
    assert memory.get(b"b") is None


def test_no_memory_keeps_nothing():
    memory = MemoryTier(0)
    memory.put(b"a", entry(0))
    assert len(memory) == 0


@given(
    st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(0, 900), st.booleans())),
    st.integers(0, 4000),
)
def test_memory_never_holds_more_than_its_limit_and_counts_right(steps, limit):
    memory = MemoryTier(limit)
    for name, size, forget in steps:
        if forget:
            memory.discard(name.encode())
        else:
            memory.put(name.encode(), entry(size))
        held = [memory.get(key.encode()) for key in "abcdefg"]
        assert memory.held == sum(e.size + OVERHEAD_BYTES for e in held if e is not None)
        assert memory.held <= limit
