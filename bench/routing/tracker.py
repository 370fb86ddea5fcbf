"""What a router without a core of ours knows: the last reports, and what it has sent itself.

The baselines stand on this; the candidate has a tracker of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from random import Random

from bench.routing.replica import Report, Shape
from bench.routing.workloads import Job


class Seen:
    """One replica in the eyes of one router of so many."""

    __slots__ = (
        *("alive", "mine", "routers", "shape"),
        *("_sent", "_sent_tokens", "_report"),
    )

    def __init__(self, shape: Shape, routers: int) -> None:
        self.shape = shape
        self.routers = routers
        self.alive = True
        self.mine = 0
        self._report = Report()
        self._sent: deque[tuple[int, int]] = deque()
        self._sent_tokens = 0

    @property
    def report(self) -> Report:
        """Its latest report."""
        return self._report

    @property
    def present(self) -> int:
        """Requests there: reported, and sent since by all routers, as far as one can guess."""
        report = self._report
        return report.running + report.waiting + self.routers * len(self._sent)

    @property
    def queued(self) -> int:
        """Prompt tokens there, likewise."""
        return self._report.queued_prefill_tokens + self.routers * self._sent_tokens

    def sent(self, start: int, tokens: int) -> None:
        """A request is on its way there."""
        self.mine += 1
        self._sent.append((start, tokens))
        self._sent_tokens += tokens

    def reported(self, report: Report, seen: int) -> None:
        """News from there; what it has not seen yet stays added."""
        self._report = report
        sent = self._sent
        while sent and sent[0][0] <= seen:
            self._sent_tokens -= sent.popleft()[1]

    def lost(self) -> None:
        """It is gone, with everything that was there."""
        self.alive = False
        self.mine = 0
        self._report = Report()
        self._sent.clear()
        self._sent_tokens = 0


class Known:
    """All replicas in the eyes of one router: hears the news, and decides nothing."""

    def __init__(self, shapes: Sequence[Shape], routers: int, random: Random) -> None:
        self.backends = [Seen(shape, routers) for shape in shapes]
        self.random = random
        self.routers = routers

    def alive(self) -> list[int]:
        """Those that can be sent to; all of them when none can."""
        found = [i for i, seen in enumerate(self.backends) if seen.alive]
        return found or list(range(len(self.backends)))

    def least(self, costs: Sequence[float], among: Sequence[int]) -> int:
        """One of the cheapest; equals are drawn from. `costs` go with `among`."""
        best = min(costs)
        equals = [backend for backend, cost in zip(among, costs, strict=True) if cost == best]
        return equals[0] if len(equals) == 1 else self.random.choice(equals)

    def sent(self, job: Job, backend: int, start: int, now: float) -> None:
        """A job is on its way."""
        self.backends[backend].sent(start, job.prompt + job.delivered)

    def sent_to_cloud(self, job: Job, now: float) -> None:
        """A job left for the cloud."""

    def reported(self, backend: int, report: Report, seen: int, now: float) -> None:
        """A replica's own figures."""
        self.backends[backend].reported(report, seen)

    def cache_changed(self, backend: int, stored: Sequence[int], removed: Sequence[int]) -> None:
        """Nobody here looks at prefixes."""

    def first(self, job: Job, now: float) -> None:
        """A first token."""

    def ended(self, job: Job, now: float) -> None:
        """A job is complete."""
        if not job.cloud:
            self.backends[job.backend].mine -= 1

    def lost(self, backend: int, now: float) -> None:
        """A replica is gone."""
        self.backends[backend].lost()

    def back(self, backend: int, now: float) -> None:
        """It is there again."""
        self.backends[backend].alive = True

    # Nobody waits here: engines queue.

    waiting = 0

    def join(self, job: Job, now: float) -> bool:
        """No."""
        return False

    def shed(self, now: float) -> Sequence[Job]:
        """Nobody."""
        return ()

    def in_order(self, now: float) -> Iterator[Job]:
        """Nobody."""
        return iter(())

    def leave(self, job: Job, now: float, *, served: bool) -> None:
        """Nobody was there."""
