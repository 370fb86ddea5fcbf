"""What a client repeats after a loss, against the rules of a service. No socket, no clock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.errors import AnabranchError, error_for
from anabranch.outbox import ACK_EVERY, Outbox
from anabranch.resumption import Resumption
from anabranch.v1 import relay_pb2


def inflight() -> Any:
    """A request, as far as an outbox looks at it."""
    return SimpleNamespace(
        payload=lambda: b"x" * 10, traceparent="", sent=False, dispatched=False, attempts=1
    )


class Service:
    """Takes messages as the contract says, and refuses what it forbids."""

    def __init__(self) -> None:
        self.received = 0
        self.started: list[int] = []
        self.cancelled: list[int] = []

    def take(self, message: relay_pb2.RelaySessionRequest) -> None:
        if not message.frames:
            return
        if message.sequence <= self.received:
            return
        assert message.sequence == self.received + 1
        self.received = message.sequence
        for frame in message.frames:
            if frame.WhichOneof("action") == "cancel":
                assert frame.stream in self.started, "cancelled but never started"
                self.cancelled.append(frame.stream)
            else:
                assert frame.stream not in self.started, "started twice"
                self.started.append(frame.stream)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.just("start"),
            st.tuples(st.just("give up"), st.integers(0, 20)),
            st.just("send"),
            st.just("confirm"),
            # The connection is lost, with the last so many messages that were sent.
            st.tuples(st.just("lose"), st.integers(0, 3)),
        ),
        max_size=40,
    )
)
def test_every_start_and_cancel_arrives_once_whatever_is_lost(steps):
    streams: dict[int, Any] = {}
    outbox, service = Outbox(streams), Service()
    outbox.open_resumable(0)
    made: list[int] = []
    abandoned: set[int] = set()
    on_its_way: list[relay_pb2.RelaySessionRequest] = []

    def send() -> None:
        while (message := outbox.next()) is not None:
            on_its_way.append(message)

    def arrive() -> None:
        for message in on_its_way:
            service.take(message)
        on_its_way.clear()

    for step in [*steps, "send", "confirm"]:
        match step:
            case "start":
                made.append(len(made) + 1)
                streams[made[-1]] = inflight()
                outbox.start(made[-1])
            case ("give up", which) if streams:
                number = sorted(streams)[which % len(streams)]
                abandoned.add(number)
                if streams.pop(number).sent:
                    outbox.cancel(number)
            case "send":
                send()
            case "confirm":
                arrive()
                outbox.confirmed(service.received)
            case ("lose", count):
                del on_its_way[len(on_its_way) - min(count, len(on_its_way)) :]
                arrive()
                outbox.rewind(service.received)
    assert sorted(service.started) == sorted(set(service.started))
    assert set(streams) <= set(service.started)
    assert set(service.cancelled) == set(service.started) & abandoned
    assert not outbox.pending


def test_what_came_is_acknowledged_with_whatever_is_sent_and_by_itself_at_times():
    streams: dict[int, Any] = {1: inflight()}
    outbox = Outbox(streams)
    outbox.open_resumable(1 << 20)
    assert outbox.next().open.resumable
    assert outbox.got(1, 10)
    assert outbox.next() is None
    outbox.start(1)
    assert outbox.next().ack == 1
    assert not outbox.owes_ack
    for sequence in range(2, 2 + ACK_EVERY):
        outbox.got(sequence, 10)
    message = outbox.next()
    assert (message.ack, message.sequence, len(message.frames)) == (1 + ACK_EVERY, 0, 0)


def test_a_small_buffer_is_acknowledged_before_it_is_full():
    outbox = Outbox({})
    outbox.open_resumable(4000)
    outbox.next()
    outbox.got(1, 999)
    assert not outbox.ack_due
    outbox.got(2, 1)
    assert outbox.ack_due


def unavailable(reason: str = "DEPENDENCY_UNAVAILABLE") -> AnabranchError:
    return error_for(reason, "gone", grpc.StatusCode.UNAVAILABLE)


def test_attempts_go_on_until_the_window_is_over_and_no_longer():
    attempts = Resumption(lambda: 0.5)
    now, delays = 100.0, []
    began = True
    with pytest.raises(AnabranchError) as caught:
        while True:
            delays.append(attempts.after(unavailable(), began=began, window=10.0, now=now))
            now += delays[-1]
            began = False
    assert caught.value.reason == "SESSION_LOST"
    assert delays[0] < 0.05
    assert delays == sorted(delays)
    assert delays[-1] <= 2.0
    assert 110.0 <= now < 112.0


def test_a_session_that_came_back_has_a_whole_window_again():
    attempts = Resumption(lambda: 0.5)
    attempts.after(unavailable(), began=True, window=10.0, now=0.0)
    attempts.after(unavailable(), began=True, window=10.0, now=50.0)
    assert attempts.lost_at == 50.0


@pytest.mark.parametrize("reason", ["SESSION_LOST", "SESSION_PROTOCOL", "ACCESS_DENIED"])
def test_what_no_connection_changes_is_the_end(reason):
    attempts = Resumption(lambda: 0.5)
    attempts.after(unavailable(), began=True, window=10.0, now=0.0)
    with pytest.raises(AnabranchError) as caught:
        attempts.after(unavailable(reason), began=False, window=10.0, now=0.1)
    assert caught.value.reason == reason


def test_who_was_cut_off_for_reading_slowly_hears_that_and_not_that_it_is_lost():
    attempts = Resumption(lambda: 0.5)
    attempts.after(unavailable("SLOW_READER"), began=True, window=10.0, now=0.0)
    with pytest.raises(AnabranchError) as caught:
        attempts.after(unavailable("SESSION_LOST"), began=False, window=10.0, now=0.1)
    assert caught.value.reason == "SLOW_READER"
