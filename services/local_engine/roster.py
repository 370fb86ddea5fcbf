"""Which models and adapters this process serves, by name, and the requests that run on each.

It changes nothing by itself: model_changes.py loads and closes. Whoever must hear of changes looks
at `version` or says so in `on_change`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import PurePath
from typing import Protocol

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import MODEL_LEFT, Fault
from services.chassis.prefix_log import PrefixLog
from services.local_engine import wire
from services.local_engine.engine import Engine, EngineLoad
from services.local_engine.joint_prefixes import JointPrefixLog


class State(Enum):
    """Whether a model takes requests."""

    SERVING = "serving"
    DRAINING = "draining"
    ASLEEP = "asleep"


class Running(Protocol):
    """A request that can be ended for the sake of its model's removal."""

    def cut(self, why: str) -> None:
        """Fails it, so that whoever sent it goes on elsewhere."""


class Served:
    """A model, or with `adapter` one of its adapters. `base` is an adapter's model, by name.

    `adapter` is the engine's key of it: a new one each time that it is loaded, so that what the
    engine has cached for one is never used for another of its name.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        *,
        source: str = "",
        aliases: Sequence[str] = (),
        base: str = "",
        adapter: str = "",
        at_run_time: bool = False,
    ) -> None:
        self.name = name
        self.engine = engine
        self.source = source
        self.aliases = tuple(aliases)
        self.base = base
        self.adapter = adapter
        self.at_run_time = at_run_time
        self.state = State.SERVING
        self.sleep_level = 0
        self._running: dict[Running, None] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """Requests that run or wait."""
        return len(self._running)

    @property
    def info(self) -> pb.ModelInfo:
        """As callers hear of it. Raises Fault MODEL_LOADING."""
        facts = replace(self.engine.facts, name=self.name)
        if self.adapter:
            facts = replace(facts, source=f"{facts.source}+{PurePath(self.source).name}")
        return wire.model_info(facts, self.aliases)

    def enter(self, request: Running) -> None:
        """A request is on its way."""
        self._running[request] = None
        self._idle.clear()

    def leave(self, request: Running) -> None:
        """It has ended. Harmless when repeated."""
        self._running.pop(request, None)
        if not self._running:
            self._idle.set()

    @contextmanager
    def asked(self) -> Iterator[Engine]:
        """A small question is asked of its engine, by the task that enters this.

        Raises Fault BACKEND_LOST when it is cut.
        """
        asking = _Asking()
        self.enter(asking)
        try:
            yield self.engine
        except asyncio.CancelledError:
            if asking.was_cut():
                raise Fault(
                    errors_pb2.ERROR_REASON_BACKEND_LOST,
                    asking.why,
                    metadata={"tokens_delivered": "0", "cause": MODEL_LEFT},
                ) from None
            raise
        finally:
            self.leave(asking)

    async def idle(self) -> None:
        """Waits until nothing runs on it."""
        await self._idle.wait()

    def cut(self, why: str) -> int:
        """Ends what still runs; how many that were."""
        running = tuple(self._running)
        for request in running:
            request.cut(why)
        return len(running)


class _Asking:
    """A task that asks an engine something."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelled_before = task.cancelling()
        self.why = ""

    def cut(self, why: str) -> None:
        self.why = why
        self._task.cancel()

    def was_cut(self) -> bool:
        """Whether that alone has cancelled it, which is undone then."""
        return bool(self.why) and self._task.uncancel() <= self._cancelled_before


class Roster:
    """The models of a process. Before the first one is there, everything is MODEL_LOADING."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self.on_change = on_change
        self.version = 0
        self.prefixes = JointPrefixLog()
        self._served: dict[str, Served] = {}
        self._aliases: dict[str, str] = {}
        # Engines until they are closed; of each what its prefix cache holds, if it tells.
        self._engines: dict[Engine, PrefixLog | None] = {}
        self._leaving: list[Served] = []
        self._began = False

    @property
    def engines(self) -> tuple[Engine, ...]:
        """Every engine, those included whose last requests are being finished."""
        return tuple(self._engines)

    @property
    def entries(self) -> tuple[Served, ...]:
        """All, ordered by name, with those that are being finished; adapters after their model."""
        everything = (*self._served.values(), *self._leaving)
        return tuple(sorted(everything, key=lambda one: (one.base or one.name, one.name)))

    @property
    def models_loaded(self) -> frozenset[str]:
        """Names of all models, whether they take requests or not."""
        return frozenset(one.name for one in self.entries if not one.adapter)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that takes requests now, models before aliases before adapters."""
        ready = [one for one in self._served.values() if one.state is State.SERVING]
        models = [one for one in ready if not one.adapter]
        named = [name for one in models for name in (one.name, *one.aliases)]
        return (*named, *(one.name for one in ready if one.adapter))

    def models(self) -> list[pb.ModelInfo]:
        """Those that take requests now. Raises Fault MODEL_LOADING."""
        self.check_began()
        return [one.info for one in self.entries if one.state is State.SERVING]

    def find(self, name: str) -> Served:
        """What a request asks for. Raises Fault MODEL_NOT_FOUND, MODEL_ASLEEP and MODEL_LOADING."""
        found = self._served.get(name) or self._served.get(self._aliases.get(name, ""))
        if found is None:
            self.check_began()
            raise _unknown(name)
        if found.state is not State.SERVING:
            raise Fault(
                errors_pb2.ERROR_REASON_MODEL_ASLEEP,
                f"{found.name!r} sleeps here",
                metadata={"model": found.name},
                retry_after=5.0,
            )
        return found

    def get(self, name: str) -> Served | None:
        """The entry of exactly this name, in whatever state."""
        return self._served.get(name)

    def model(self, name: str) -> Served:
        """The entry of a model. Raises Fault NOT_FOUND."""
        found = self._served.get(name)
        if found is None or found.adapter:
            self.check_began()
            raise Fault(
                errors_pb2.ERROR_REASON_NOT_FOUND,
                f"no model {name!r} is served here",
                metadata={"model": name},
            )
        return found

    def adapters_of(self, base: Served) -> list[Served]:
        """The adapters of a model."""
        return [one for one in self._served.values() if one.adapter and one.engine is base.engine]

    def conflict(self, name: str, aliases: Sequence[str]) -> str:
        """Which of these names is somebody else's already; empty when none is."""
        for wanted in (name, *aliases):
            owner = self._aliases.get(wanted, wanted if wanted in self._served else "")
            if owner not in ("", name):
                return wanted
        return ""

    def put(self, served: Served) -> list[Served]:
        """Serves it under its name from now on; what that makes leave: see `remove`."""
        before = self._served.get(served.name)
        left = [] if before is None else self._take_out(before)
        self._served[served.name] = served
        self._aliases |= dict.fromkeys(served.aliases, served.name)
        if served.engine not in self._engines:
            log = self._engines[served.engine] = served.engine.prefixes
            if log is not None:
                self.prefixes.add(log)
        self._began = True
        self.changed()
        return left

    def remove(self, served: Served) -> list[Served]:
        """Takes nothing more for it, and for a model's adapters; all of these still finish."""
        left = self._take_out(served)
        self.changed()
        return left

    def gone(self, served: Sequence[Served]) -> None:
        """Those that left are finished."""
        self._leaving = [one for one in self._leaving if one not in served]

    def forget(self, engine: Engine) -> None:
        """The engine is about to be closed."""
        log = self._engines.pop(engine, None)
        if log is not None:
            self.prefixes.discard(log)

    def changed(self) -> None:
        """What is served is not what it was."""
        self.version += 1
        self.on_change()

    def load(self) -> EngineLoad:
        """The load of all engines together. Raises Fault MODEL_LOADING."""
        self.check_began()
        asleep = {one.engine for one in self._served.values() if one.state is State.ASLEEP}
        return total([engine.load() for engine in self._engines if engine not in asleep])

    def _take_out(self, served: Served) -> list[Served]:
        left = [served] if served.adapter else [served, *self.adapters_of(served)]
        for one in left:
            one.state = State.DRAINING
            self._leaving.append(one)
            self._served.pop(one.name, None)
            for alias in one.aliases:
                self._aliases.pop(alias, None)
        return left

    def check_began(self) -> None:
        """Raises Fault MODEL_LOADING."""
        if not self._began:
            raise Fault(
                errors_pb2.ERROR_REASON_MODEL_LOADING, "the model is being loaded", retry_after=2.0
            )


def total(loads: Sequence[EngineLoad]) -> EngineLoad:
    """The load of several engines as that of one.

    Counts add up; the pace is that of the busiest one, which most requests feel.
    """
    if len(loads) == 1:
        return loads[0]
    if not loads:
        return EngineLoad()
    busiest = max(loads, key=lambda load: load.running + load.waiting)
    return replace(
        busiest,
        running=sum(load.running for load in loads),
        waiting=sum(load.waiting for load in loads),
        queued_prefill_tokens=sum(load.queued_prefill_tokens for load in loads),
        context_tokens=sum(load.context_tokens for load in loads),
        kv_used_tokens=sum(load.kv_used_tokens for load in loads),
        kv_total_tokens=sum(load.kv_total_tokens for load in loads),
        output_tokens_per_second=sum(load.output_tokens_per_second for load in loads),
        max_running=sum(load.max_running for load in loads),
    )


def _unknown(name: str) -> Fault:
    return Fault(
        errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
        f"this backend does not serve {name!r}",
        metadata={"model": name},
    )
