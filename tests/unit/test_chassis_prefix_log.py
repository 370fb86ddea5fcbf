"""Whoever reads a prefix log, from whenever on and however slowly, ends up with what is held."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from anabranch.v1 import session_pb2
from services.chassis.prefix_log import NAMES_A_MESSAGE, PrefixLog, PrefixReader


class Listener:
    """A router's view: only what the messages say."""

    def __init__(self, log: PrefixLog) -> None:
        self._reader = PrefixReader(log)
        self.held: set[int] = set()
        self.cleared = 0

    def hear(self, most: int = NAMES_A_MESSAGE) -> session_pb2.PrefixCacheEvents | None:
        events = self._reader.next(most)
        if events is not None:
            self.cleared += events.cleared
            if events.cleared:
                self.held.clear()
            assert not set(events.stored) & set(events.removed)
            assert len(events.stored) + len(events.removed) <= most
            self.held.update(events.stored)
            self.held.difference_update(events.removed)
        return events

    def hear_all(self, most: int = NAMES_A_MESSAGE) -> set[int]:
        while self.hear(most) is not None:
            pass
        assert not self._reader.waits
        return self.held


def test_a_new_session_hears_that_nothing_before_counts_and_what_is_held():
    log = PrefixLog()
    for name in (5, 6, 7):
        log.stored(name)
    log.removed(6)
    listener = Listener(log)
    events = listener.hear()
    assert events is not None
    assert events.cleared
    assert set(events.stored) == {5, 7}
    assert not events.removed
    assert listener.hear() is None


def test_an_empty_cache_is_said_to_be_empty_once():
    listener = Listener(PrefixLog())
    events = listener.hear()
    assert events is not None
    assert events.cleared
    assert listener.hear() is None


def test_nothing_is_told_while_nothing_changes():
    log = PrefixLog()
    listener = Listener(log)
    listener.hear_all()
    log.stored(1)
    log.stored(1)
    assert listener.hear() == session_pb2.PrefixCacheEvents(stored=[1])
    log.removed(2)
    assert listener.hear() is None


def test_what_came_and_went_in_between_is_told_by_its_end():
    log = PrefixLog()
    listener = Listener(log)
    listener.hear_all()
    log.stored(1)
    log.removed(1)
    log.stored(2)
    assert listener.hear() == session_pb2.PrefixCacheEvents(stored=[2], removed=[1])


def test_many_names_take_several_messages():
    log = PrefixLog()
    for name in range(10_000):
        log.stored(name)
    listener = Listener(log)
    sizes = []
    while (events := listener.hear()) is not None:
        sizes.append(len(events.stored))
    assert sizes == [4096, 4096, 1808]
    assert listener.held == set(range(10_000))


def test_changes_during_a_long_beginning_are_told_after_it():
    log = PrefixLog()
    for name in range(100):
        log.stored(name)
    listener = Listener(log)
    listener.hear(10)
    log.removed(95)
    log.stored(500)
    assert listener.hear_all(10) == set(log.held())
    assert listener.cleared == 1


def test_a_session_too_far_behind_begins_again():
    log = PrefixLog(most_changes=10)
    listener = Listener(log)
    listener.hear_all()
    for name in range(25):
        log.stored(name)
    assert listener.hear_all() == set(range(25))
    assert listener.cleared == 2


def test_a_cache_that_is_emptied_is_told_as_such():
    log = PrefixLog()
    listener = Listener(log)
    log.stored(1)
    listener.hear_all()
    log.clear()
    log.stored(2)
    assert listener.hear_all() == {2}
    assert listener.cleared == 2


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("store"), st.integers(0, 30)),
            st.tuples(st.just("remove"), st.integers(0, 30)),
            st.tuples(st.just("clear"), st.just(0)),
            st.tuples(st.just("join"), st.just(0)),
            st.tuples(st.just("hear"), st.integers(0, 3)),
        ),
        max_size=200,
    ),
    st.integers(1, 7),
    st.integers(1, 9),
)
def test_every_session_ends_up_with_what_is_held(events, most, remembered):
    log = PrefixLog(most_changes=remembered)
    held: set[int] = set()
    listeners = [Listener(log)]
    for what, number in events:
        if what == "store":
            log.stored(number)
            held.add(number)
        elif what == "remove":
            log.removed(number)
            held.discard(number)
        elif what == "clear":
            log.clear()
            held.clear()
        elif what == "join":
            listeners.append(Listener(log))
        else:
            listeners[number % len(listeners)].hear(most)
        assert set(log.held()) == held
    assert all(listener.hear_all(most) == held for listener in listeners)
