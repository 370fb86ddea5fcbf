"""One report serves all sessions that send it after the same step, and none is out of date."""

from __future__ import annotations

from services.local_engine.engine import EngineLoad
from services.local_engine.load_reports import LoadReports


class Scene:
    """An engine whose load is asked for, and a clock."""

    def __init__(self) -> None:
        self.asked = 0
        self.now = 7.0
        self.encoding = 0
        self.draining = False
        self.reports = LoadReports(
            self,  # type: ignore[arg-type]
            encoding=lambda: self.encoding,
            draining=lambda: self.draining,
            clock=lambda: self.now,
        )

    def load(self) -> EngineLoad:
        self.asked += 1
        return EngineLoad(running=2, waiting=1)


def test_sessions_that_report_together_share_one_report():
    scene = Scene()
    first = scene.reports.now()
    first.starts_seen = 4
    assert scene.reports.now() is first
    assert scene.asked == 1


def test_what_changed_is_in_the_next_report_which_has_the_next_number():
    scene = Scene()
    first = scene.reports.now().sequence
    scene.encoding = 3
    scene.reports.changed()
    report = scene.reports.now()
    assert (report.sequence, report.waiting) == (first + 1, 4)
    assert report.starts_seen == 0


def test_no_report_outlives_a_step():
    scene = Scene()
    scene.reports.now()
    scene.now += 0.006
    scene.draining = True
    assert scene.reports.now().draining
