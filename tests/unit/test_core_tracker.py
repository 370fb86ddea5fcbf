"""What a router knows of a backend's load between its reports."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.router.core.prediction import outlook
from services.router.core.tracker import Tracker
from services.router.core.values import Health, Load, Tier

BUSY = Load(running=3, waiting=1, queued_prefill_tokens=50)


def connected(peers: int = 1) -> Tracker:
    tracker = Tracker("a", Tier.LOCAL, frozenset("m"))
    tracker.set_peers(peers)
    tracker.connected(5.0)
    return tracker


def test_an_outlook_is_kept_until_a_change_that_matters_to_it():
    tracker = connected()
    known = outlook(tracker.view())
    assert outlook(tracker.view()) is known
    for change in (
        lambda: tracker.started(1, 10),
        lambda: tracker.ended(),
        lambda: tracker.reported(BUSY, 1),
        lambda: tracker.disconnected(Health.LOST),
        lambda: tracker.connected(9.0),
        lambda: tracker.set_peers(2),
        lambda: tracker.touch(),
    ):
        change()
        assert tracker.view().outlook is None
        known = outlook(tracker.view())


def test_a_report_replaces_what_it_has_seen_and_no_more():
    tracker = connected()
    for start in (1, 2, 3):
        tracker.started(start, 100 * start)
    tracker.reported(BUSY, starts_seen=2)
    view = tracker.view()
    assert (view.sent_since, view.sent_tokens_since) == (1, 300)
    assert view.load is BUSY
    assert view.in_flight == 3


def test_who_ended_after_the_report_no_longer_counts():
    tracker = connected()
    tracker.started(1, 10)
    tracker.reported(Load(running=1), starts_seen=1)
    tracker.ended()
    assert outlook(tracker.view()).present == 0
    tracker.reported(Load(running=0), starts_seen=1)
    assert tracker.view().ended_since == 0


def test_other_routers_are_taken_to_send_as_much():
    tracker = connected(peers=3)
    tracker.reported(Load(), 0)
    tracker.started(1, 10)
    view = tracker.view()
    assert (view.sent_since, view.sent_tokens_since, view.in_flight) == (3, 30, 1)


@pytest.mark.parametrize("how", ["connected", "disconnected"])
def test_nothing_of_an_earlier_session_remains(how):
    tracker = connected()
    tracker.reported(BUSY, 0)
    tracker.started(1, 10)
    tracker.started(2, 10)
    tracker.ended()
    if how == "connected":
        tracker.connected(7.0)
        assert (tracker.view().load, tracker.view().ready_since) == (Load(), 7.0)
    else:
        tracker.disconnected(Health.LOST)
        assert tracker.view().health is Health.LOST
    view = tracker.view()
    assert (view.in_flight, view.sent_since, view.sent_tokens_since, view.ended_since) == (0,) * 4


def test_the_dispatches_to_one_that_never_reports_are_forgotten_as_they_end():
    """A provider, or a router before other routers: nothing it says could clear them."""
    tracker = connected(peers=2)
    for start in range(1, 1001):
        tracker.started(start, 10)
        if start > 2:
            tracker.ended()
    view = tracker.view()
    assert (view.in_flight, view.sent_since, view.ended_since) == (2, 4, 0)
    assert view.sent_tokens_since == 40
    assert outlook(view).present == 4


def test_the_length_of_answers_and_the_time_to_the_first_token_are_followed():
    tracker = connected()
    tracker.first_token(0.5)
    assert tracker.state.ttft == 0.5, "the first one is all that is known"
    for _ in range(200):
        tracker.first_token(0.1)
        tracker.answered(20)
    assert tracker.state.ttft == pytest.approx(0.1, rel=0.01)
    assert tracker.view().mean_output == pytest.approx(20, rel=0.01)


class Session(RuleBasedStateMachine):
    """A backend's session in any order, beside a list of all that was ever sent.

    `known` is how many starts the latest report had seen. An end comes with the backend's own
    words, so a report knows of each that came before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tracker = Tracker("a", Tier.LOCAL)
        self.tracker.set_peers(3)
        self.begin()

    @rule()
    def begin(self):
        self.tracker.connected(1.0)
        self.sent: list[int] = []
        self.running: set[int] = set()
        self.known = 0
        self.ended_since = 0
        self.reported_once = False

    @rule(tokens=st.integers(0, 5000))
    def start(self, tokens):
        self.sent.append(tokens)
        self.running.add(len(self.sent))
        self.tracker.started(len(self.sent), tokens)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data):
        count = data.draw(st.integers(1, len(self.running)))
        for start in data.draw(st.permutations(sorted(self.running)))[:count]:
            self.running.discard(start)
        self.ended_since += count
        if not self.reported_once:
            # Until there is a report the oldest are forgotten, as many as have ended.
            self.known = len(self.sent) - len(self.running)
        self.tracker.ended(count)

    @rule(data=st.data())
    def report(self, data):
        self.known = data.draw(st.integers(self.known, len(self.sent)))
        seen = [start for start in self.running if start <= self.known]
        self.load = Load(running=len(seen))
        self.tracker.reported(self.load, self.known)
        self.ended_since = 0
        self.reported_once = True

    @rule()
    def lose(self):
        self.tracker.disconnected(Health.LOST)
        assert self.tracker.view().in_flight == 0
        self.begin()

    @invariant()
    def counts(self):
        view = self.tracker.view()
        assert view.in_flight == len(self.running)
        if self.reported_once:
            unseen = self.sent[self.known :]
            assert view.sent_since == 3 * len(unseen)
            assert view.sent_tokens_since == 3 * sum(unseen)
            assert view.ended_since == self.ended_since
            assert view.load is self.load
        else:
            assert view.sent_since == 3 * len(self.running)
            assert 0 <= view.sent_tokens_since <= 3 * sum(self.sent)
            assert view.ended_since == 0
        assert outlook(view).present >= len(self.running)


TestSession = Session.TestCase
TestSession.settings = settings(max_examples=60, stateful_step_count=25)


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(0, 40))
def test_without_peers_and_ends_a_report_and_the_rest_make_the_whole(prompts, seen):
    tracker = connected()
    for start, tokens in enumerate(prompts, 1):
        tracker.started(start, tokens)
    load = Load(running=len(prompts[:seen]), queued_prefill_tokens=sum(prompts[:seen]))
    tracker.reported(load, seen)
    ahead = outlook(tracker.view())
    assert (ahead.present, ahead.queued) == (len(prompts), sum(prompts))
