"""Whatever happens in whatever order, each answer is whole, ends once, and leaves nothing behind.

A state machine drives callers and engines of a real cluster in this process; tests/cluster runs
more and longer ones. A failure prints the steps that lead to it.
"""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.checking_callers import ReturningCaller, SessionCaller
from tests.support.interleaving import World, end_quietly

PICK = st.integers(0, 99)
LIMITS = st.integers(1, 150)
CHOICES = st.sampled_from([1, 1, 1, 2])
MOMENTS = st.sampled_from([0, 2, 10, 30])
"""Milliseconds: none, within a step, a few steps, many."""


class Interleavings(RuleBasedStateMachine):
    """One run. The world is kept for the next one while it is clean: starting it takes longest."""

    loop: asyncio.Runner
    directory: Path
    world: World | None = None

    def __init__(self) -> None:
        super().__init__()
        cls = type(self)
        if cls.world is None:
            cls.world = self.loop.run(World.open(Path(tempfile.mkdtemp(dir=self.directory))))
        self.now = cls.world
        cls.world = None  # until this run has ended well

    def teardown(self) -> None:
        try:
            self.loop.run(self.now.settle())
        except BaseException:
            self.loop.run(end_quietly(self.now))
            raise
        type(self).world = self.now

    def _sessions(self) -> list[SessionCaller]:
        return [c for c in self.now.callers if isinstance(c, SessionCaller) and not c.gone]

    def _present(self):
        return [caller for caller in self.now.callers if not caller.gone]

    # Callers

    @precondition(lambda self: len(self._sessions()) < 3)
    @rule()
    def a_session_opens(self):
        self.loop.run(self.now.new_session())

    @precondition(lambda self: self._sessions())
    @rule(who=PICK, asked=st.lists(st.tuples(LIMITS, CHOICES), min_size=1, max_size=5))
    def requests_start_in_a_session(self, who, asked):
        sessions = self._sessions()

        async def start() -> None:
            answers = [self.now.answer(limit, choices) for limit, choices in asked]
            await sessions[who % len(sessions)].start(answers)

        self.loop.run(start())

    @rule(limit=LIMITS, choices=CHOICES, whole=st.booleans())
    def a_plain_call_starts(self, limit, choices, whole):
        self.loop.run(self.now.plain(limit, choices, whole=whole))

    # Also one that may have ended: what may happen must not hang on the moment, or hypothesis
    # cannot follow.
    @precondition(lambda self: any(s.answers for s in self._sessions()))
    @rule(which=PICK)
    def a_request_of_a_session_is_cancelled(self, which):
        started = [(s, n) for s in self._sessions() for n in s.answers]
        session, number = started[which % len(started)]
        self.loop.run(session.cancel(number))

    @rule(limit=LIMITS, choices=CHOICES)
    def a_call_of_the_library_starts(self, limit, choices):
        self.loop.run(self.now.returning(limit, choices))

    # To those who come back, it counts as if nothing had happened.
    @precondition(lambda self: any(isinstance(c, ReturningCaller) for c in self._present()))
    @rule(after_ms=MOMENTS)
    def the_library_s_connection_is_cut(self, after_ms):
        self.time_passes(after_ms)
        self.now.network.cut()

    @precondition(lambda self: self._present())
    @rule(who=PICK)
    def a_caller_leaves(self, who):
        present = self._present()
        self.loop.run(present[who % len(present)].leave())

    @precondition(lambda self: self._present())
    @rule(who=PICK)
    def a_caller_stops_reading_or_goes_on(self, who):
        present = self._present()
        reads = present[who % len(present)].reads
        (reads.clear if reads.is_set() else reads.set)()

    # Engines

    @precondition(lambda self: self.now.engines < 3)
    @rule()
    def an_engine_comes(self):
        self.loop.run(self.now.add_engine())

    @precondition(lambda self: self.now.engines > 1)
    @rule(which=PICK, crash=st.booleans(), after_ms=MOMENTS)
    def an_engine_goes(self, which, crash, after_ms):
        self.time_passes(after_ms)
        self.loop.run(self.now.lose_engine(which, crash=crash))

    @precondition(lambda self: self.now.engines == 1)
    @rule(crash=st.booleans(), after_ms=MOMENTS)
    def the_last_engine_goes_and_another_comes(self, crash, after_ms):
        self.loop.run(self.now.lose_engine(0, crash=crash))
        self.time_passes(after_ms)
        self.loop.run(self.now.add_engine())

    # Time

    @rule(ms=MOMENTS)
    def time_passes(self, ms):
        self.loop.run(asyncio.sleep(ms / 1000))

    @invariant()
    def nobody_hears_anything_wrong(self):
        assert not self.now.wrong(), self.now.wrong()


def run(directory: Path, *, examples: int, steps: int) -> None:
    """So many runs of so many steps at most."""
    with asyncio.Runner() as loop:
        machine = type("Run", (Interleavings,), {"loop": loop, "directory": directory})
        try:
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=steps,
                    deadline=None,
                    database=None,
                    print_blob=True,
                    suppress_health_check=list(HealthCheck),
                    # A failure depends on the moment as well: shrinking would lead astray for long.
                    phases=[Phase.generate],
                ),
            )
        finally:
            if machine.world is not None:
                loop.run(end_quietly(machine.world))


@pytest.mark.slow
def test_any_order_of_events_leaves_answers_whole_and_nothing_behind(tmp_path):
    run(tmp_path, examples=8, steps=25)
