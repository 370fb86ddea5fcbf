"""Takes the looks of a plan: the capacity first, then every strategy in every round, then kills.

The strategies take turns within each round, on the same trace, so that what else the machine does
falls on all of them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass

from bench.dataplane.measure import Generator, Progress
from bench.overflow import outcome
from bench.overflow.generator import Order
from bench.overflow.outcome import Outcome
from bench.overflow.plan import (
    SETTLE_S,
    WARM_S,
    Phase,
    Plan,
    Strategy,
)
from bench.overflow.sample import Sample, in_short, summed_up
from bench.overflow.stack import Stack
from bench.overflow.trace import mean_output, mean_prompt


@dataclass(frozen=True)
class Capacity:
    """What the local tier carries with every slot taken."""

    tokens_per_second: float
    modelled: float

    @property
    def requests_per_second(self) -> float:
        """Of the trace's mean length."""
        return self.tokens_per_second / mean_output()

    def to_json(self) -> dict[str, float]:
        """As JSON values."""
        return {
            "tokens_per_second": self.tokens_per_second,
            "modelled_tokens_per_second": self.modelled,
            "requests_per_second": self.requests_per_second,
            "mean_prompt": mean_prompt(),
            "mean_output": mean_output(),
        }


class Run:
    """Looks, one after the other, at one stack."""

    def __init__(self, stack: Stack, generator: Generator, plan: Plan, progress: Progress) -> None:
        self._stack = stack
        self._generator = generator
        self._plan = plan
        self._progress = progress
        self._looks = 0
        self._capacity: Capacity | None = None

    async def capacity(self) -> Capacity:
        """Measures what the local tier carries: more than fits is kept running."""
        plan = self._plan
        engines = plan.engines
        warm = plan.saturation / 3
        modelled = engines.tokens_per_second(mean_prompt(), mean_output())
        seconds = plan.saturation + warm
        order = await self._order(
            Strategy.LOCAL,
            "saturation",
            (Phase(2.0, seconds),),
            modelled / mean_output(),
            closed=engines.all_slots + engines.slots,
            warm=warm,
        )
        result = await self._generator.look(order)
        self._capacity = Capacity(result["tokens_per_second"], modelled)
        rate = self._capacity.requests_per_second
        self._progress.step(
            f"the local capacity: {self._capacity.tokens_per_second:,.0f} tokens/s (by the "
            f"engines' model {modelled:,.0f}), {rate:.1f} requests/s"
        )
        return self._capacity

    async def warm_up(self) -> None:
        """Lets the router learn what answers are like, here and in the cloud."""
        half = WARM_S / 2
        await self._look(Strategy.CLOUD, "warm", (Phase(0.5, half),))
        await self._look(Strategy.ROUTER, "warm", (Phase(1.5, half),))
        self._progress.step("warmed up")

    async def rounds(self) -> list[Sample]:
        """Every strategy in every round."""
        samples = []
        for number in range(self._plan.rounds):
            for strategy in self._plan.order(number):
                sample = await self._look(strategy, str(number), self._plan.phases)
                samples.append(sample | {"round": number})
                self._progress.step(f"round {number + 1}, {strategy.label}: {in_short(sample)}")
        return samples

    async def kills(self) -> list[Sample]:
        """Looks during which an engine is killed, each another one, and started again after."""
        samples = []
        for number in range(self._plan.kills):
            names = self._stack.engine_names
            sample = await self._kill(names[number % len(names)], number)
            samples.append(sample | {"round": number})
            self._progress.step(f"{sample['engine']} killed: {_killed_in_short(sample)}")
        return samples

    async def _kill(self, engine: str, number: int) -> Sample:
        backend, phases = self._stack.backend_id(engine), self._plan.kill_phases

        async def kill() -> None:
            await asyncio.sleep(sum(phase.seconds for phase in phases) / 2)
            await self._stack.kill(engine)

        killing = asyncio.create_task(kill())
        try:
            result = await self._look(Strategy.ROUTER, f"kill-{number}", phases, keep=True)
        finally:
            await killing
        await self._stack.revive(engine)
        # Only an answer's receipt says that its engine was lost: whoever got none is `broken`.
        hit = outcome.touched(result.pop("outcomes"), backend)
        mid_stream = [one for one in hit if one.resumed_at]
        return result | {
            "engine": engine,
            "hit": len(hit),
            "mid_stream": len(mid_stream),
            "exact": sum(one.exact for one in hit),
            "went_to_cloud": sum(one.tier == outcome.CLOUD for one in hit),
            "longest_pause": max((one.pause for one in mid_stream), default=0.0),
        }

    async def _look(
        self, strategy: Strategy, trace: str, phases: Sequence[Phase], *, keep: bool = False
    ) -> Sample:
        assert self._capacity is not None, "the capacity is measured first"
        order = await self._order(strategy, trace, phases, self._capacity.requests_per_second)
        before = await self._stack.provider_state()
        result = await self._generator.look(order)
        after = await self._stack.provider_state()
        await asyncio.sleep(SETTLE_S)
        outcomes = [Outcome.of(values) for values in result["outcomes"]]
        figures = summed_up(
            outcomes,
            phases,
            self._capacity.tokens_per_second,
            result["cores"],
            result["waits"],
            machine=os.cpu_count() or 1,
        )
        sample = figures | {
            "strategy": strategy.value,
            "provider_seen": after["seen"] - before["seen"],
            "provider_private": after["private"] - before["private"],
        }
        return sample | {"outcomes": outcomes} if keep else sample

    async def _order(
        self,
        strategy: Strategy,
        trace: str,
        phases: Sequence[Phase],
        rate: float,
        *,
        closed: int = 0,
        warm: float = 0.0,
    ) -> Order:
        self._looks += 1
        slots = self._plan.engines.all_slots
        return Order(
            look=str(self._looks),
            target=self._stack.target,
            authorization=await self._stack.authorization(),
            strategy=strategy.value,
            cap=round(slots * (strategy.cap or 0.0)),
            seed=trace,
            rate=rate,
            phases=[(phase.load, phase.seconds) for phase in phases],
            private=self._plan.private,
            sessions=self._plan.sessions,
            watched=self._stack.pids(),
            closed=closed,
            warm=warm,
        )


def _killed_in_short(sample: Sample) -> str:
    parts = [f"{sample['hit']} answers lost their engine, {sample['mid_stream']} in mid-stream"]
    parts += [f"{sample['exact']} of them token by token right"]
    parts += [f"longest pause {sample['longest_pause'] * 1e3:,.0f} ms"]
    parts += [f"{count}× {what}" for what, count in sample["failures"].items()]
    return ", ".join([*parts, *sample["marks"]])
