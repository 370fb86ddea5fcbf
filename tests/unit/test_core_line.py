"""Who may wait, who goes first, who is shed."""

from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.core.admission import CLASSES, Seats
from services.router.core.line import STRIDE, Admitted, Line, Reason, Refused, Shed
from services.router.core.policy import AdmissionRules, ClassRules, PriorityClass

SYSTEM, INTERACTIVE, BATCH = PriorityClass
NOW = 1000.0
PATIENT = AdmissionRules(max_wait=1e6)


def floors(*shares: float, seats: int = 10) -> AdmissionRules:
    classes = {klass: ClassRules(share) for klass, share in zip(CLASSES, shares, strict=True)}
    return AdmissionRules(max_waiting=seats, max_wait=1e6, classes=classes)


def order(line: Line[str], now: float = NOW) -> str:
    return "".join(line.in_order(now))


def paced(gap: float, rules: AdmissionRules = PATIENT) -> Line[str]:
    """A line that was served every `gap` seconds until NOW, with one left in it."""
    line: Line[str] = Line(rules)
    for turn in range(11):
        line.join(f"past{turn}", SYSTEM, NOW - 10 * gap)
    for turn in range(10):
        line.serve(f"past{turn}", NOW + (turn - 9) * gap)
    return line


# Who joins


def test_who_joins_learns_how_many_are_ahead():
    line: Line[str] = Line(PATIENT)
    assert line.join("a", BATCH, NOW) == Admitted(0, 0.0)
    assert line.join("b", INTERACTIVE, NOW) == Admitted(0, 0.0)
    assert line.join("c", BATCH, NOW) == Admitted(2, 0.0)
    assert line.join("d", BATCH, NOW, deadline=NOW + 5) == Admitted(1, 0.0)
    assert (len(line), line.waiting(BATCH), line.waiting(SYSTEM)) == (4, 3, 0)
    assert "a" in line


def test_a_full_line_refuses_a_class_whose_floor_is_used_up():
    line: Line[str] = Line(floors(0.1, 0.5, 0.1))
    for key in "abcdefghij":
        line.join(key, BATCH, NOW)
    assert line.waiting(BATCH) == 4
    assert line.join("x", BATCH, NOW) == Refused(Reason.FULL, 0.0)
    assert isinstance(line.join("x", INTERACTIVE, NOW), Admitted)
    assert line.leave("a")
    assert isinstance(line.join("y", BATCH, NOW), Admitted)


def test_lines_may_share_their_seats():
    rules = floors(0.0, 0.0, 0.0, seats=2)
    seats = Seats(rules)
    one, other = Line[str](rules, seats), Line[str](rules, seats)
    one.join("a", BATCH, NOW)
    other.join("b", BATCH, NOW)
    assert isinstance(one.join("c", BATCH, NOW), Refused)
    other.serve("b", NOW)
    assert isinstance(one.join("c", BATCH, NOW), Admitted)


def test_a_deadline_that_has_passed_is_refused_at_once():
    line: Line[str] = Line(PATIENT)
    assert line.join("a", SYSTEM, NOW, deadline=NOW) == Refused(Reason.TOO_LATE, 0.0)
    assert len(line) == 0


def test_a_deadline_that_the_line_cannot_make_is_refused_at_once():
    line = paced(0.5)
    for key in "abcdefgh":
        assert isinstance(line.join(key, INTERACTIVE, NOW), Admitted)
    # Nine ahead at half a second each: 4.5 s, and the pace may be off by half.
    refused = line.join("x", BATCH, NOW, deadline=NOW + 2)
    assert refused == Refused(Reason.TOO_LATE, pytest.approx(5.0))
    assert isinstance(line.join("y", BATCH, NOW, deadline=NOW + 4), Admitted)
    assert isinstance(line.join("z", SYSTEM, NOW, deadline=NOW + 2), Admitted), "goes before them"
    assert isinstance(line.join("u", INTERACTIVE, NOW, deadline=NOW + 1), Admitted)


def test_who_would_wait_too_long_is_refused_at_once():
    line = paced(0.5, AdmissionRules(max_wait=2.0))
    for key in "abcdefgh":
        line.join(key, INTERACTIVE, NOW, deadline=NOW + 60)
    assert line.join("x", BATCH, NOW, deadline=NOW + 60) == Refused(
        Reason.WAITED_TOO_LONG, pytest.approx(line.expected_wait(BATCH, NOW))
    )


def test_a_line_of_unknown_pace_turns_nobody_away():
    line: Line[str] = Line(PATIENT)
    for key in "abcdefgh":
        assert isinstance(line.join(key, INTERACTIVE, NOW, deadline=NOW + 0.1), Admitted)


def test_one_key_waits_once():
    line: Line[str] = Line(PATIENT)
    line.join("a", BATCH, NOW)
    with pytest.raises(ValueError, match="already"):
        line.join("a", BATCH, NOW)


def test_who_does_not_wait_cannot_leave():
    line: Line[str] = Line(PATIENT)
    assert not line.leave("a")
    assert not line.serve("a", NOW)


def test_the_expected_wait_follows_the_pace_and_the_class():
    line = paced(0.5)
    for key in "abc":
        line.join(key, INTERACTIVE, NOW)
    assert line.expected_wait(SYSTEM, NOW) == pytest.approx(1.0)
    assert line.expected_wait(BATCH, NOW) == pytest.approx(2.5)


def test_while_nobody_was_served_the_oldest_wait_is_the_best_guess():
    line: Line[str] = Line(PATIENT)
    assert (line.oldest_wait(NOW), line.expected_wait(BATCH, NOW)) == (0.0, 0.0)
    line.join("a", INTERACTIVE, NOW)
    line.join("b", SYSTEM, NOW + 1)
    assert line.oldest_wait(NOW + 3) == 3.0
    assert line.expected_wait(BATCH, NOW + 3) == 3.0


# Who goes first


def test_classes_go_in_order_then_deadlines_then_arrival():
    line: Line[str] = Line(PATIENT)
    for key, klass, left in (
        ("f", BATCH, 1),
        ("d", INTERACTIVE, 9),
        ("b", INTERACTIVE, 3),
        ("e", INTERACTIVE, 9),
        ("a", SYSTEM, 99),
        ("c", INTERACTIVE, 3),
    ):
        line.join(key, klass, NOW, deadline=NOW + left)
    assert order(line) == "abcdef"


def test_whose_deadline_has_passed_is_offered_nothing():
    line: Line[str] = Line(PATIENT)
    line.join("a", INTERACTIVE, NOW, deadline=NOW + 1)
    line.join("b", INTERACTIVE, NOW, deadline=NOW + 2)
    assert order(line, NOW + 1) == "b"


def test_one_place_in_four_belongs_to_the_starving():
    line: Line[str] = Line(PATIENT)
    line.join("B", BATCH, NOW)
    line.join("C", BATCH, NOW + 1)
    for key in "abcdefgh":
        line.join(key, INTERACTIVE, NOW + 9)
    served = ""
    for _ in range(10):
        first = next(iter(line.in_order(NOW + 12)))
        line.serve(first, NOW + 12)
        served += first
    assert served == "abcBdefCgh"


def test_one_walk_with_much_capacity_keeps_that_share():
    line: Line[str] = Line(PATIENT)
    for number, key in enumerate("BCDE"):
        line.join(key, BATCH, NOW + number)
    for key in "abcdefgh":
        line.join(key, INTERACTIVE, NOW + 9)
    served = ""
    for key in line.in_order(NOW + 60):
        line.serve(key, NOW + 60)
        served += key
    # All of them starve by now, so that the oldest of the line goes every fourth time.
    assert served == "abcBdefCghDE"


def test_who_cannot_use_a_place_is_offered_it_once_and_keeps_none_from_others():
    line: Line[str] = Line(PATIENT)
    line.join("B", BATCH, NOW)
    for key in "abcdef":
        line.join(key, INTERACTIVE, NOW + 9)
    for key in "abc":
        line.serve(key, NOW + 12)
    offered = list(line.in_order(NOW + 12))
    assert offered == ["B", "d", "e", "f"]


def test_who_was_offered_a_place_in_turn_is_not_offered_another_for_starving():
    line: Line[str] = Line(PATIENT)
    line.join("P", INTERACTIVE, NOW)
    for key in "abcd":
        line.join(key, INTERACTIVE, NOW + 11)
    walked = []
    for key in line.in_order(NOW + 12):
        walked.append(key)
        if key != "P":
            line.serve(key, NOW + 12)
    assert walked == ["P", "a", "b", "c", "d"]


def test_a_backlog_of_batch_work_does_not_hold_up_interactive_requests():
    """A thousand old batch requests; an interactive one still goes within two places."""
    line: Line[str] = Line(AdmissionRules(max_waiting=2000, max_wait=1e6))
    for number in range(1000):
        line.join(f"batch{number}", BATCH, NOW)
    now = NOW + 100
    for number in range(50):
        line.join(f"now{number}", INTERACTIVE, now)
        for _ in range(2):
            line.serve(next(iter(line.in_order(now))), now)
        assert line.waiting(INTERACTIVE) == 0
        now += 0.1


def test_who_joins_during_a_walk_waits_for_the_next():
    line: Line[str] = Line(PATIENT)
    line.join("a", INTERACTIVE, NOW)
    line.join("b", BATCH, NOW)
    walked = ""
    for key in line.in_order(NOW):
        walked += key
        line.leave(key)
        line.join(key.upper(), SYSTEM, NOW)
    assert walked == "ab"
    assert order(line) == "AB"


# Who is shed


def test_whose_deadline_passed_is_shed_first_and_told_why():
    line: Line[str] = Line(AdmissionRules(max_wait=30.0))
    line.join("late", SYSTEM, NOW, deadline=NOW + 1)
    line.join("old", BATCH, NOW, deadline=NOW + 99)
    line.join("fine", BATCH, NOW + 1)
    assert line.shed(NOW + 0.9) == []
    assert line.next_shed(NOW) == NOW + 1
    assert line.shed(NOW + 1) == [Shed("late", Reason.TOO_LATE)]
    assert line.shed(NOW + 30) == [Shed("old", Reason.WAITED_TOO_LONG)]
    assert len(line) == 1


def standing(klass: PriorityClass, count: int, target: float = 0.5) -> Line[str]:
    line: Line[str] = Line(PATIENT)
    for number in range(count):
        line.join(f"{klass.value}{number}", klass, NOW, target=target)
    return line


def run_until(line: Line[str], start: float, end: float) -> list[str]:
    """Sheds whenever the line wants to; nobody is served."""
    gone: list[str] = []
    now = start
    while (now := line.next_shed(now)) <= end:
        gone += [one.key for one in line.shed(now)]
    return gone


def test_a_line_that_stands_loses_its_oldest_after_target_and_interval():
    line = standing(INTERACTIVE, 5)
    assert run_until(line, NOW, NOW + 1.49) == []
    assert run_until(line, NOW + 1.49, NOW + 1.5) == ["interactive0"]
    assert len(run_until(line, NOW + 1.5, NOW + 60)) == 3, "one alone is no line"


def test_the_least_important_class_is_shed_though_another_one_stands():
    line = standing(INTERACTIVE, 5)
    line.join("batch", BATCH, NOW, target=inf)
    assert run_until(line, NOW, NOW + 2.6) == ["batch", "interactive0"]


def test_a_class_that_may_wait_is_not_shed_for_waiting():
    line = standing(BATCH, 100, target=inf)
    assert run_until(line, NOW, NOW + 1000) == []


def test_system_is_never_shed_for_standing():
    line = standing(SYSTEM, 100)
    line.join("batch", BATCH, NOW)
    assert [line.shed(NOW + half / 2) for half in range(100)] == [[]] * 100


def test_who_comes_after_a_standing_line_has_gone_is_not_shed_for_it():
    line = standing(INTERACTIVE, 5)
    line.shed(NOW + 1)
    for number in range(5):
        line.leave(f"interactive{number}")
    for key in "abc":
        line.join(key, INTERACTIVE, NOW + 1.4, target=0.05)
    assert line.shed(NOW + 1.5) == []


def test_a_burst_that_drains_is_served_whole():
    line = standing(INTERACTIVE, 100)
    for tick in range(100):
        now = NOW + tick / 20
        assert line.shed(now) == []
        line.serve(next(iter(line.in_order(now))), now)
    assert len(line) == 0


def test_a_line_so_short_that_newcomers_meet_the_target_is_left_alone():
    line = paced(0.1)
    line.leave("past10")
    for number in range(3):
        line.join(f"old{number}", INTERACTIVE, NOW, target=0.5)
    assert run_until(line, NOW, NOW + 5) == []


def overload(target: float, factor: float, seconds: float = 120.0) -> tuple[list[float], int]:
    """A line served 50 times a second that `factor` as many join; late waits, and how many shed."""
    random, line = Random(5), Line[int](AdmissionRules(max_waiting=10_000, max_wait=10.0))
    waits, shed, number, arrived = [], 0, 0, {}
    arrival = serve = NOW
    while min(arrival, serve) < NOW + seconds:
        now = min(arrival, serve)
        shed += sum(one.reason is Reason.STANDING_LINE for one in line.shed(now))
        if arrival <= serve:
            number += 1
            arrived[number] = now
            line.join(number, INTERACTIVE, now, target=target)
            arrival += random.expovariate(50 * factor)
        else:
            first = next(iter(line.in_order(now)), None)
            if first is not None:
                line.serve(first, now)
                if now > NOW + seconds - 40:
                    waits.append(now - arrived[first])
            serve += random.expovariate(50)
    return sorted(waits), shed


@pytest.mark.parametrize("factor", [1.1, 1.5, 3.0])
def test_lasting_overload_leaves_waits_near_the_target(factor):
    waits, shed = overload(target=0.5, factor=factor)
    assert shed > 0
    assert waits[len(waits) // 2] < 1.2
    assert waits[len(waits) * 95 // 100] < 2.0
    assert len(waits) > 0.95 * 40 * 50, "nobody is shed that capacity was there for"


def test_without_codel_everybody_waits_as_long_as_they_may():
    waits, shed = overload(target=inf, factor=1.5)
    assert shed == 0
    assert waits[len(waits) // 2] > 9.0


def test_below_capacity_nobody_is_shed():
    assert overload(target=0.5, factor=0.8)[1] == 0


# Whatever happens

events = st.lists(
    st.tuples(
        st.sampled_from(["join", "join", "join", "serve", "leave", "shed"]),
        st.floats(0, 4),
        st.sampled_from(CLASSES),
        st.sampled_from([0.5, 5.0, 20.0, inf]),
        st.integers(0, 40),
    ),
    max_size=120,
)


@given(events)
@settings(max_examples=150, deadline=None)
def test_the_order_is_what_sorting_would_give_and_the_line_never_too_long(steps):
    rules = floors(0.1, 0.3, 0.2, seats=12)
    line: Line[int] = Line(rules)
    waiting: dict[int, tuple[int, float, int, float]] = {}  # class, deadline, number, arrival
    now, passed = NOW, 0

    def expected() -> list[int]:
        alive = {key: entry for key, entry in waiting.items() if entry[1] > now}
        usual = sorted(alive, key=lambda key: alive[key][:3])
        if passed < STRIDE - 1:
            return usual
        starving = sorted(
            (entry[3] + 10.0, key) for key, entry in alive.items() if entry[3] + 10.0 <= now
        )
        first = [key for _, key in starving]
        return first + [key for key in usual if key not in first]

    for number, (event, gap, klass, left, which) in enumerate(steps):
        now += gap
        if event == "join":
            answer = line.join(number, klass, now, deadline=now + left)
            if isinstance(answer, Admitted):
                rank = CLASSES.index(klass)
                entry = (rank, min(now + left, now + 1e6), number, now)
                assert answer.ahead == sum(other[:3] < entry[:3] for other in waiting.values())
                waiting[number] = entry
        elif event == "serve" and expected():
            key = expected()[which % len(expected())]
            starves = waiting[key][3] + 10.0 <= now
            passed = 0 if passed >= STRIDE - 1 and starves else passed + 1
            assert line.serve(key, now)
            del waiting[key]
        elif event == "leave" and waiting:
            key = sorted(waiting)[which % len(waiting)]
            assert line.leave(key)
            del waiting[key]
        elif event == "shed":
            late = {key for key, entry in waiting.items() if entry[1] <= now}
            assert {one.key for one in line.shed(now)} == late
            for key in late:
                del waiting[key]
        assert list(line.in_order(now)) == expected()
        assert len(line) == len(waiting) <= 12
        assert [line.waiting(k) for k in CLASSES] == [
            sum(entry[0] == rank for entry in waiting.values()) for rank in range(3)
        ]


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(CLASSES)), min_size=30, max_size=90))
@settings(deadline=None, max_examples=60)
def test_while_service_goes_on_nobody_starves(steps):
    """One place a second, any arrivals: whoever has waited 10 s leaves once those who have waited
    even longer have had their places, four places each."""
    line: Line[int] = Line(PATIENT)
    arrived: dict[int, float] = {}
    limit: dict[int, int] = {}
    number = served = 0
    now = NOW
    for joining, klass in steps:
        for _ in range(joining):
            number += 1
            line.join(number, klass, now)
            arrived[number] = now
        first = next(iter(line.in_order(now)), None)
        if first is not None:
            line.serve(first, now)
            served += 1
            del arrived[first]
            limit.pop(first, None)
        now += 1.0
        for key, at in arrived.items():
            if now - at >= 10.0:
                longer = sum((other, k) < (at, key) for k, other in arrived.items())
                limit.setdefault(key, served + STRIDE * (longer + 1))
            assert served < limit.get(key, served + 1)


@given(events)
@settings(max_examples=30, deadline=None)
def test_equal_histories_have_equal_outcomes(steps):
    def history() -> list[object]:
        line: Line[int] = Line(floors(0.1, 0.3, 0.2, seats=12))
        seen: list[object] = []
        now = NOW
        for number, (event, gap, klass, left, which) in enumerate(steps):
            now += gap
            if event == "join":
                seen.append(line.join(number, klass, now, now + left, target=0.5))
            elif event == "serve":
                seen.append(line.serve(which, now))
            else:
                seen.append(line.shed(now))
            seen.append(list(line.in_order(now)))
        return seen

    assert history() == history()
