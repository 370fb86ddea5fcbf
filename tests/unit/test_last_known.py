"""The set in force through outages, restarts without memory and flapping."""

from services.chassis.registry import Instance
from services.chassis.registry.last_known import LastKnown

A, B, C = (Instance(x, "s", f"h:{n}") for n, x in enumerate("abc", 1))


def known(stale_for: float, grace: float, *instances: Instance) -> LastKnown:
    k = LastKnown(stale_for, grace)
    k.answered(tuple(instances), memory_lost=False, now=0)
    return k


def test_only_changes_are_reported():
    k = LastKnown(100, 10)
    assert k.answered((), memory_lost=False, now=0) == ()
    assert k.answered((), memory_lost=False, now=1) is None
    assert k.answered((A,), memory_lost=False, now=2) == (A,)


def test_an_answer_in_good_health_is_believed_even_if_empty():
    assert known(100, 10, A, B).answered((), memory_lost=False, now=1) == ()


def test_a_failure_keeps_the_set_until_it_is_too_old():
    k = known(100, 10, A)
    assert k.failed(5) is None
    assert k.failed(104) is None
    assert k.failed(105) == ()
    assert k.failed(106) is None


def test_after_an_outage_the_missing_are_kept_for_the_grace():
    k = known(100, 10, A, B)
    k.failed(5)
    assert k.answered((), memory_lost=False, now=6) is None
    assert k.seconds_of_grace(9) == 7
    assert k.answered((B, C), memory_lost=False, now=15) == (A, B, C)
    assert k.answered((B, C), memory_lost=False, now=16) == (B, C)
    assert k.seconds_of_grace(16) is None


def test_a_lost_memory_is_treated_as_an_outage():
    k = known(100, 10, A)
    assert k.answered((), memory_lost=True, now=1) is None
    assert k.answered((), memory_lost=False, now=11) == ()


def test_the_kept_give_way_to_another_at_their_address():
    k = known(100, 10, A)
    k.failed(1)
    again = Instance("a2", "s", A.address)
    assert k.answered((again,), memory_lost=False, now=2) == (again,)


def test_a_flapping_registry_keeps_nobody_longer_than_the_stale_time():
    k = known(100, 10, A)
    shown_until = 0.0
    for now in range(0, 200, 8):
        k.failed(now)
        if k.answered((), memory_lost=False, now=now + 4) == ():
            break
        shown_until = now + 4
    assert shown_until < 100
