"""What a router makes of a backend's word about its load."""

from math import inf, isfinite, nan

import pytest

from anabranch.v1 import errors_pb2, generation_pb2, session_pb2
from services.chassis.errors import MODEL_LEFT, Fault
from services.chassis.registry import Instance
from services.router.core.prediction import outlook, score, time_to_first_token
from services.router.core.values import Coefficients, Load
from services.router.known_backend import KnownBackend


def test_a_backend_that_serves_nothing_is_not_taken_for_what_the_registry_said_before():
    listed = Instance("a", "anabranch-engine", "127.0.0.1:1", meta={"models": "river"})
    known = KnownBackend(listed, lambda: None, lambda: 1.0)
    assert known.model_names == {"river"}
    river = generation_pb2.ModelInfo(name="river", aliases=["brook"])
    known.greeted(session_pb2.SessionReady(models=[river]))
    assert known.model_names == {"river", "brook"}
    known.greeted(session_pb2.SessionReady())
    assert known.model_names == set()


@pytest.mark.parametrize(("cause", "rests"), [("", True), (MODEL_LEFT, False)])
def test_a_backend_rests_after_losses_and_not_after_its_model_has_left(cause, rests):
    known = KnownBackend(Instance("a", "anabranch-engine", "x:1"), lambda: None, lambda: 1.0)
    known.greeted(session_pb2.SessionReady())
    for generation in [known.sent() for _ in range(20)]:
        lost = Fault(errors_pb2.ERROR_REASON_BACKEND_LOST, "gone", metadata={"cause": cause})
        known.failed(generation, lost)
    assert (known.tracker.state.cooling_until > 1.0) == rests


def reported(**figures) -> Load:
    known = KnownBackend(
        Instance("a", "anabranch-engine", "127.0.0.1:1", meta={"tier": "local"}),
        lambda: None,
        lambda: 1.0,
    )
    known.reported(session_pb2.LoadReport(**figures))
    ahead = outlook(known.tracker.view())
    assert isfinite(score(ahead, 10))
    assert isfinite(time_to_first_token(ahead, 10))
    return known.tracker.view().load


@pytest.mark.parametrize("nonsense", [nan, inf, -inf, -1.0])
def test_figures_that_no_load_has_are_not_believed(nonsense):
    load = reported(step_time_ratio=nonsense, prefill_tokens_per_step=nonsense)
    assert (load.step_time_ratio, load.prefill_tokens_per_step) == (1.0, 0.0)
    model = session_pb2.StepCoefficients(
        base=5000.0, prefill=nonsense, decode=nonsense, context=nonsense
    )
    assert reported(step_model=model).coefficients == Coefficients(5e-3, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("base", [0.0, -5.0, nan])
def test_a_model_in_which_a_step_takes_no_time_is_none(base):
    model = session_pb2.StepCoefficients(base=base, prefill=17.0)
    assert reported(step_model=model).coefficients is None


def test_a_negative_duration_of_steps_is_none():
    assert reported(step_time={"nanos": -10}).step_time == 0.0


def test_the_figures_arrive_as_they_are():
    model = session_pb2.StepCoefficients(base=5753.0, prefill=17.25, decode=6.0, context=0.052)
    load = reported(
        running=3, step_time_ratio=1.5, step_time={"nanos": 20_000_000}, step_model=model
    )
    assert load == Load(
        running=3,
        step_time_ratio=1.5,
        step_time=0.02,
        coefficients=Coefficients(
            *[pytest.approx(value / 1e6) for value in (5753.0, 17.25, 6.0, 0.052)]
        ),
    )
