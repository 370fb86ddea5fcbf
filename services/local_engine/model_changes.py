"""Changes what a process serves: loads beside what runs, points the name over, finishes, closes.

One change at a time. What may be loaded from where is model_sources.py's, how the wire says it
model_admin.py's. A change whose caller leaves is finished here, or undone, never left half done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from anabranch.v1 import errors_pb2
from anabranch.v1 import model_admin_pb2 as pb
from services.chassis.errors import Fault, invalid
from services.chassis.tasks import Tasks
from services.local_engine.abilities import Refused, Sleeps
from services.local_engine.adapter_changes import AdapterChanges
from services.local_engine.change_steps import (
    LEAVES,
    Phase,
    Progress,
    drained,
    pulse,
)
from services.local_engine.change_turn import ChangeTurn
from services.local_engine.checkpoint_check import read_checkpoint
from services.local_engine.engine import Engine, EngineStartError
from services.local_engine.engine_watch import EngineWatch
from services.local_engine.load_options import naming_faults, settings_for
from services.local_engine.model_refusal import refused, said
from services.local_engine.model_sources import ModelSources
from services.local_engine.roster import Roster, Served, State
from services.local_engine.safetensors_header import BadFile
from services.local_engine.settings import Settings

_log = logging.getLogger(__name__)

TELL_EVERY_S = 5.0
"""A load that says nothing for longer looks dead to whoever waits for it."""
_LOOK_EVERY_S = 0.5


class ModelChanges:
    """The changes of one process. `make` makes an engine from settings; it is not started."""

    def __init__(
        self,
        settings: Settings,
        roster: Roster,
        *,
        make: Callable[[Settings], Engine],
        watch: EngineWatch,
        tasks: Tasks,
    ) -> None:
        self._settings = settings
        self._sources = ModelSources(settings.model_sources)
        self._roster = roster
        self._make = make
        self._watch = watch
        self._turn = ChangeTurn(tasks)
        self._open: set[Engine] = set()
        self.adapters = AdapterChanges(roster, self._sources, self._turn)

    async def begin(self, engine: Engine) -> None:
        """Serves the settings' own model, whose engine has started, with its adapters.

        Raises EngineStartError when an adapter cannot be served.
        """
        name, *aliases = self._settings.names
        source = self._settings.model if self._settings.engine == "vllm" else ""
        served = Served(name, engine, source=source, aliases=aliases)
        loaded = []
        for adapter, path in self._settings.adapter_paths:
            try:
                loaded.append(await self.adapters.made(served, adapter, Path(path), run_time=False))
            except Fault as fault:
                raise EngineStartError(f"adapter {adapter}: {fault.message}") from fault
        self._roster.put(served)
        for one in loaded:
            self._roster.put(one)
        self._watch.add(engine)

    async def close(self) -> None:
        """Closes every engine, those of loads that never ended too."""
        for engine in {*self._roster.engines, *self._open}:
            await _closed(engine)

    async def load(self, request: pb.LoadModelRequest, drain: float) -> AsyncIterator[Progress]:
        """Loads a model and serves it, telling how far it is. Raises Fault as the RPC does."""
        if faults := naming_faults(request):
            raise invalid(faults)
        settings_for(self._settings, request)
        self._roster.check_began()
        with self._turn.take(f"{request.name!r} is being loaded"):
            yield Progress(Phase.CHECKING, "looking at the files")
            settings = await asyncio.to_thread(self._checked, request)
            if taken := self._roster.conflict(request.name, request.aliases):
                raise Fault(
                    errors_pb2.ERROR_REASON_ALREADY_EXISTS,
                    f"{taken!r} is a name of another model here",
                    metadata={"name": taken},
                )
            engine = self._make(settings)
            self._open.add(engine)
            starting = asyncio.create_task(engine.start(), name="model-start")
            try:
                yield Progress(Phase.LOADING, "the engine starts")
                async for _ in pulse(starting, TELL_EVERY_S):
                    yield Progress(Phase.LOADING)
                starting.result()
                before = self._roster.get(request.name)
                kept = () if before is None else before.aliases
                served = Served(
                    request.name,
                    engine,
                    source=settings.model,
                    aliases=request.aliases or kept,
                    at_run_time=True,
                )
                left = self._roster.put(served)
            except EngineStartError as error:
                await self._undo(starting, engine)
                raise refused(str(error)) from error
            except BaseException:
                await self._undo(starting, engine)
                raise
            self._open.discard(engine)
            self._watch.add(engine)
            _log.info("model served", extra={"model": request.name, "swapped": before is not None})
            cut = 0
            if before is not None:
                retiring = self._retire(left, before.engine, drain)
                yield Progress(Phase.SERVING)
                async for _ in pulse(retiring, _LOOK_EVERY_S):
                    waiting = sum(one.in_flight for one in left)
                    yield Progress(Phase.DRAINING, in_flight=waiting)
                cut = retiring.result()
            else:
                yield Progress(Phase.SERVING)
            yield Progress(Phase.DONE, served=served, cut_off=cut)

    async def unload(self, name: str, drain: float, *, allow_last: bool) -> int:
        """Takes a model out of service; how many requests were cut off. Raises Fault."""
        served = self._roster.model(name)
        with self._turn.take(f"{name!r} is being unloaded"):
            others = [one for one in self._roster.entries if one.engine is not served.engine]
            if not allow_last and all(one.state is State.DRAINING for one in others):
                raise Fault(
                    errors_pb2.ERROR_REASON_IN_USE,
                    f"{name!r} is the last model here: without it the process is not ready "
                    "(allow_last does it all the same)",
                )
            left = self._roster.remove(served)
            return await asyncio.shield(self._retire(left, served.engine, drain))

    async def sleep(self, name: str, level: int, drain: float) -> tuple[Served, int]:
        """Puts a model to sleep; it, and how many requests were cut off. Raises Fault."""
        served = self._roster.model(name)
        engine = served.engine
        if not isinstance(engine, Sleeps):
            raise Fault(errors_pb2.ERROR_REASON_UNSUPPORTED, "this engine cannot sleep")
        with self._turn.take(f"{name!r} is being put to sleep"):
            if served.state is State.ASLEEP:
                if served.sleep_level != level:
                    raise Fault(
                        errors_pb2.ERROR_REASON_IN_USE,
                        f"{name!r} sleeps at level {served.sleep_level}: wake it first",
                    )
                return served, 0
            engine.check_sleep()
            everything = [served, *self._roster.adapters_of(served)]
            self._enter(everything, State.DRAINING)
            try:
                cut = await drained(everything, drain)
            except BaseException:
                self._enter(everything, State.SERVING)
                raise
            await self._turn.whole(self._fall_asleep(engine, everything, level))
            return served, cut

    async def wake(self, name: str) -> Served:
        """Brings a model back. Raises Fault."""
        served = self._roster.model(name)
        with self._turn.take(f"{name!r} is being woken"):
            engine = served.engine
            if served.state is State.ASLEEP and isinstance(engine, Sleeps):
                everything = [served, *self._roster.adapters_of(served)]
                await self._turn.whole(self._wake(engine, everything))
            return served

    async def _fall_asleep(self, engine: Sleeps, everything: Sequence[Served], level: int) -> None:
        self._watch.rests(everything[0].engine, True)
        try:
            await engine.sleep(level)
        except BaseException as error:
            self._watch.rests(everything[0].engine, False)
            self._enter(everything, State.SERVING)
            if isinstance(error, Refused):
                raise refused(str(error)) from error
            raise
        self._enter(everything, State.ASLEEP, level)

    async def _wake(self, engine: Sleeps, everything: Sequence[Served]) -> None:
        try:
            await engine.wake()
        except Refused as why:
            raise refused(str(why)) from why
        self._watch.rests(everything[0].engine, False)
        self._enter(everything, State.SERVING)

    def _checked(self, request: pb.LoadModelRequest) -> Settings:
        """The settings to load it with, its source allowed and its files sound; reads files."""
        found = self._sources.find(request.source)
        if found.directory is not None and self._settings.engine == "vllm":
            try:
                read_checkpoint(found.directory)
            except (BadFile, OSError) as bad:
                raise refused(said(bad)) from bad
        return settings_for(self._settings, request, found.name, hub=found.directory is None)

    async def _undo(self, starting: asyncio.Task[None], engine: Engine) -> None:
        """Ends a load, and every process of it, even when whoever asked for that leaves too."""

        starting.cancel()

        async def undo() -> None:
            await asyncio.wait({starting})
            if not starting.cancelled():
                starting.exception()
            await _closed(engine)
            self._open.discard(engine)

        await asyncio.shield(self._turn.begin(undo(), "model-undo"))

    def _retire(self, left: Sequence[Served], engine: Engine, drain: float) -> asyncio.Task[int]:
        """Finishes what left the roster and closes its engine, whoever waits for it."""
        self._watch.leaves(engine)
        return self._turn.begin(self._finish(left, engine, drain), "model-retire")

    async def _finish(self, left: Sequence[Served], engine: Engine, drain: float) -> int:
        cut = await drained(left, drain)
        self._roster.gone(left)
        self._open.add(engine)
        await self._watch.discard(engine)
        self._roster.forget(engine)
        engine.give_up(LEAVES)
        await _closed(engine)
        self._open.discard(engine)
        names = ",".join(one.name for one in left)
        _log.info("model taken out of service", extra={"models": names, "cut_off": cut})
        return cut

    def _enter(self, everything: Sequence[Served], state: State, level: int = 0) -> None:
        for one in everything:
            one.state, one.sleep_level = state, level
        self._roster.changed()


async def _closed(engine: Engine) -> None:
    """Closes it; that it does not close well is no reason to end the models beside it."""
    try:
        await engine.close()
    except Exception:  # noqa: BLE001 - whatever it is, it was on its way out
        _log.exception("an engine was not closed well")
