"""LoRA adapters of served models: loaded beside what runs, replaced, taken out of service.

Whether their files fit is adapter_check.py's, what the engine does with them its own.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from services.local_engine.abilities import AdapterHost, Refused, adapters_of
from services.local_engine.adapter_check import check_adapter
from services.local_engine.change_steps import drained
from services.local_engine.change_turn import ChangeTurn
from services.local_engine.checkpoint_check import Checkpoint, read_checkpoint
from services.local_engine.model_refusal import refused, said
from services.local_engine.model_sources import ModelSources
from services.local_engine.roster import Roster, Served, State
from services.local_engine.safetensors_header import BadFile

_log = logging.getLogger(__name__)


class AdapterChanges:
    """Changes of the adapters of one process; `turn` is that of all its changes."""

    def __init__(self, roster: Roster, sources: ModelSources, turn: ChangeTurn) -> None:
        self._roster = roster
        self._sources = sources
        self._turn = turn
        self._keys = itertools.count(1)

    async def made(
        self, model: Served, name: str, directory: Path, *, run_time: bool = True
    ) -> Served:
        """An adapter that its engine has loaded, and that is not served yet. Raises Fault."""
        host = _host_of(model)
        base = await asyncio.to_thread(_base_of, model)
        try:
            await asyncio.to_thread(check_adapter, directory, most_rank=host.most_rank, base=base)
        except (BadFile, OSError) as bad:
            raise refused(said(bad)) from bad
        key = f"{name}#{next(self._keys)}"
        try:
            await host.load(key, directory)
        except Refused as why:
            raise refused(str(why)) from why
        return Served(
            f"{model.name}:{name}",
            model.engine,
            source=str(directory),
            base=model.name,
            adapter=key,
            at_run_time=run_time,
        )

    async def load(self, base: str, name: str, source: str, drain: float) -> Served:
        """Loads an adapter and serves it. Raises Fault as the RPC does."""
        model = self._roster.model(base)
        with self._turn.take(f"{base}:{name} is being loaded"):
            host = _host_of(model)
            _check_awake(model)
            self._check_name(model, name, host.most)
            found = await asyncio.to_thread(self._sources.find, source, hub=False)
            assert found.directory is not None
            served, left = await self._turn.whole(self._load(model, name, found.directory, drain))
            if left is not None:
                await asyncio.shield(left)
            return served

    async def unload(self, base: str, name: str, drain: float) -> int:
        """Takes an adapter out of service; how many requests were cut off. Raises Fault."""
        served = self._roster.get(f"{base}:{name}")
        if served is None or not served.adapter:
            raise Fault(
                errors_pb2.ERROR_REASON_NOT_FOUND, f"no adapter {base}:{name} is served here"
            )
        with self._turn.take(f"{served.name} is being unloaded"):
            _check_awake(served)
            return await asyncio.shield(self._retire(self._roster.remove(served), drain))

    async def _load(
        self, model: Served, name: str, directory: Path, drain: float
    ) -> tuple[Served, asyncio.Task[int] | None]:
        served = await self.made(model, name, directory)
        left = self._roster.put(served)
        return served, self._retire(left, drain) if left else None

    def _check_name(self, model: Served, name: str, most: int) -> None:
        """Raises Fault ALREADY_EXISTS for another model's name, IN_USE when there is no room."""
        full = f"{model.name}:{name}"
        before = self._roster.get(full)
        if self._roster.conflict(full, ()) or (before is not None and before.base != model.name):
            raise Fault(
                errors_pb2.ERROR_REASON_ALREADY_EXISTS,
                f"{full!r} is a name of another model here",
                metadata={"name": full},
            )
        if before is None and len(self._roster.adapters_of(model)) >= most:
            raise Fault(
                errors_pb2.ERROR_REASON_IN_USE,
                f"{model.name!r} has {most} adapters, as many as are allowed: unload one first",
            )

    def _retire(self, left: Sequence[Served], drain: float) -> asyncio.Task[int]:
        return self._turn.begin(self._finish(left, drain), "adapter-retire")

    async def _finish(self, left: Sequence[Served], drain: float) -> int:
        cut = await drained(left, drain)
        self._roster.gone(left)
        for one in left:
            host = adapters_of(one.engine)
            if host is not None:
                await host.unload(one.adapter)
        names = ",".join(one.name for one in left)
        _log.info("adapter taken out of service", extra={"models": names, "cut_off": cut})
        return cut


def _host_of(model: Served) -> AdapterHost:
    host = adapters_of(model.engine)
    if host is None:
        raise Fault(
            errors_pb2.ERROR_REASON_NOT_ENABLED,
            f"{model.name!r} was loaded without room for adapters",
            metadata={"setting": "ANABRANCH_ENGINE_MAX_ADAPTERS"},
        )
    return host


def _check_awake(served: Served) -> None:
    """Raises Fault IN_USE: what is written to memory that a device has given up ends its engine."""
    if served.state is State.ASLEEP:
        raise Fault(
            errors_pb2.ERROR_REASON_IN_USE,
            f"{served.base or served.name!r} sleeps: wake it first",
        )


def _base_of(model: Served) -> Checkpoint | None:
    """What the model's files say, where it was loaded from a directory."""
    directory = Path(model.source)
    if not model.source or not directory.is_dir():
        return None
    try:
        return read_checkpoint(directory)
    except (BadFile, OSError):
        return None  # it runs: its files are of another kind, or gone
