"""What a session holds for its caller: numbering, repetition, bounds. No socket."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import relay_pb2
from services.chassis.session_output import SessionOutput


def output(limit: int = 1 << 20, *, numbered: bool = True) -> SessionOutput:
    made = SessionOutput(limit, asyncio.Event(), lambda: 1, lambda number: None)
    made.numbered = numbered
    return made


def say(to: SessionOutput, token: int, *, last: bool = False) -> None:
    raw = pb.GenerateChunk(first_token=token, token_ids=[token]).SerializeToString()
    to.add((1, raw, None, last, 1), len(raw))


def take(of: SessionOutput) -> bytes | None:
    raw = of.again()
    if raw is None and of.waits:
        raw = of.next_message(None)
    return raw


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.just("say"),
            st.just("send"),
            st.just("acknowledge"),
            # The connection is lost, with the last so many messages that were sent.
            st.tuples(st.just("lose"), st.integers(0, 3)),
        ),
        max_size=60,
    )
)
def test_every_token_comes_once_and_in_order_whatever_is_lost(steps):
    out = output()
    said, heard, seen = 0, 0, []
    on_its_way: list[bytes] = []

    def arrive() -> None:
        nonlocal heard
        for raw in on_its_way:
            message = relay_pb2.RelaySessionResponse.FromString(raw)
            assert message.sequence == heard + 1
            heard = message.sequence
            for frame in message.frames:
                seen.extend(pb.GenerateChunk.FromString(frame.chunk).token_ids)
        on_its_way.clear()

    for step in [*steps, ("lose", 0)]:
        match step:
            case "say":
                say(out, said)
                said += 1
            case "send":
                if (raw := take(out)) is not None:
                    on_its_way.append(raw)
            case "acknowledge":
                arrive()
                out.confirm(heard)
            case ("lose", count):
                del on_its_way[len(on_its_way) - min(count, len(on_its_way)) :]
                arrive()
                out.rewind(heard)
    while (raw := take(out)) is not None:
        on_its_way.append(raw)
    arrive()
    assert seen == list(range(said))
    out.confirm(heard)
    assert not out.unconfirmed
    assert out.held == 0


def test_what_is_sent_counts_until_it_is_acknowledged():
    out = output(limit=100)
    for token in range(200):
        say(out, token)
        take(out)
        if out.overflowed:
            break
    assert out.overflowed
    assert 100 < out.held < 150


def test_without_numbers_nothing_is_kept():
    out = output(limit=100, numbered=False)
    for token in range(200):
        say(out, token)
        assert take(out) != b""
    assert not out.overflowed
    assert out.held == 0
    assert out.sequence == 0
