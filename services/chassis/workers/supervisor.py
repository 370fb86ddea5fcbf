"""Keeps N workers of one service running behind one port. Creates no gRPC object.

Replaces workers that die or are stuck, restarts them one by one, registers the service once for
all of them, and ends them all. It sees no request.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from typing import Any

from services.chassis import logs
from services.chassis.common_settings import WorkerSettings
from services.chassis.registry import Registration, Registry
from services.chassis.tls import Tls, https_of
from services.chassis.workers import control
from services.chassis.workers.child import Child, Program
from services.chassis.workers.front import Front
from services.chassis.workers.stuck import kill_the_stuck
from services.chassis.workers.worker import LOG_LEVEL

_log = logging.getLogger(__name__)

_STARTS_S = 60.0
"""Until a worker that is to replace another must serve."""
_STEADY_S = 10.0
"""A worker that lived this long died of something new: it is replaced without delay."""
_BACK_OFF_S = (0.1, 5.0)
_VAIN_STARTS = 4
"""Deaths in a row of one worker, before any has ever served, after which there is no point."""
_BEYOND_DRAIN_S = 15.0
_LONGEST_DIRECTORY = 90
"""The kernel takes 107 bytes for the path of a socket."""
BAD_SETTINGS = 2
"""The exit code with which a worker says that no attempt will help."""


class CannotRunError(Exception):
    """The workers do not come up. `code` is the exit code of the last one."""

    def __init__(self, cause: str, code: int) -> None:
        super().__init__(cause)
        self.code = code


class _Place:
    """One of the N places, and whoever fills it now."""

    def __init__(self) -> None:
        self.child: Child | None = None
        self.changing = asyncio.Lock()


class Supervisor:
    """The workers of one service. `run` is its whole life; `stop` and `restart` act on it."""

    def __init__(
        self, settings: WorkerSettings, program: Program, registry: Registry, listen: str
    ) -> None:
        self._program = program
        self._registry = registry
        self._listen = listen
        self._drain = settings.drain_timeout
        self._places = [_Place() for _ in range(settings.workers)]
        self._children: dict[int, Child] = {}
        self._indices: set[int] = set()
        self._numbers = 0
        self._shared: dict[str, Any] = {}
        self._revisions: dict[str, int] = {}
        self._registration: Registration | None = None
        self._registered = asyncio.Event()
        self._stopping = asyncio.Event()
        self._restart = asyncio.Event()
        self._ever_served = False
        self._directory = ""
        # Its workers have their own: what it needs one for is HTTPS.
        self._tls = Tls.open(settings)
        https = https_of(settings, self._tls)
        self._front = Front(settings.http_listen, self._by_index, settings.workers, https)
        self._tasks: asyncio.TaskGroup

    def stop(self) -> None:
        """Begins the ordered end of all."""
        self._stopping.set()

    def restart(self) -> None:
        """Begins to replace the workers one by one; during that, it is done once more after."""
        self._restart.set()

    def kill(self) -> None:
        """Ends every worker at once."""
        for child in self._children.values():
            child.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def run(self) -> None:
        """Runs the workers until `stop`; returns when all have ended.

        Raises CannotRunError when they do not come up, OSError when the HTTP address is taken.
        """
        self._directory = tempfile.mkdtemp(prefix="anabranch-")  # mode 0700
        try:
            if len(self._directory) > _LONGEST_DIRECTORY:
                raise OSError(f"{self._directory} is too long for sockets: set a shorter TMPDIR")
            await self._front.http.start()
            _log.info(
                "listening", extra={"address": self._listen, "http": self._front.http.address}
            )
            async with asyncio.TaskGroup() as self._tasks:
                helpers = [
                    self._tasks.create_task(self._keep(place), name=f"place-{number}")
                    for number, place in enumerate(self._places)
                ]
                helpers.append(self._tasks.create_task(self._restarts(), name="restarts"))
                helpers.append(self._tasks.create_task(self._register(), name="registration"))
                stuck = kill_the_stuck(self._by_index)
                helpers.append(self._tasks.create_task(stuck, name="stuck-workers"))
                if self._tls is not None:
                    helpers.append(self._tasks.create_task(self._tls.follow(), name="certificates"))
                await self._stopping.wait()
                for task in helpers:
                    task.cancel()
                await asyncio.wait(helpers)  # none of them starts a worker any more
                await self._end_all()
        except BaseExceptionGroup as group:
            # One failure ends all; its siblings were only cancelled by it.
            raise group.exceptions[0] from None
        finally:
            self.kill()
            await self._front.http.close()

    # Places

    async def _keep(self, place: _Place) -> None:
        """Fills a place, and fills it again whenever its worker dies."""
        deaths = 0
        async with place.changing:
            place.child = await self._spawn()
        while True:
            child = place.child
            code = await child.exit()
            async with place.changing:
                if place.child is not child:
                    continue  # replaced in order, or about to end
                lived = asyncio.get_running_loop().time() - child.started
                deaths = 1 if child.serving.is_set() and lived >= _STEADY_S else deaths + 1
                self._mourn(child, code, deaths)
                if deaths > 1:
                    low, high = _BACK_OFF_S
                    await asyncio.sleep(min(low * 2 ** (deaths - 2), high))
                place.child = await self._spawn()

    def _mourn(self, child: Child, code: int, deaths: int) -> None:
        self._front.deaths.inc()
        _log.warning(
            "worker ended",
            extra={"worker": child.index, "status": code, "cause": child.cause, "deaths": deaths},
        )
        if not self._ever_served and (code == BAD_SETTINGS or deaths >= _VAIN_STARTS):
            cause = child.cause or f"its exit status was {code}"
            raise CannotRunError(f"worker {child.index} ended {deaths} times: {cause}", code)

    async def _restarts(self) -> None:
        while True:
            await self._restart.wait()
            self._restart.clear()
            _log.info("restarting the workers one by one")
            for place in self._places:
                if not await self._replace(place):
                    break
            else:
                _log.info("all workers restarted")

    async def _replace(self, place: _Place) -> bool:
        """Puts a new worker in the place of the old, which then finishes what it has."""
        async with place.changing:
            old, new = place.child, await self._spawn()
            serves = self._tasks.create_task(new.serving.wait())
            dies = self._tasks.create_task(new.exit())
            try:
                await asyncio.wait(
                    (serves, dies), timeout=_STARTS_S, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                serves.cancel()
                dies.cancel()
            if not new.serving.is_set():
                _log.error("a new worker does not serve: old ones stay", extra={"cause": new.cause})
                new.kill()
                return False
            place.child = new
        if old is not None:
            await self._retire(old)
        return True

    async def _retire(self, child: Child) -> None:
        child.leaving = True
        child.tell(control.RETIRE)
        try:
            async with asyncio.timeout(self._drain + _BEYOND_DRAIN_S):
                await child.exit()
        except TimeoutError:
            _log.error("worker does not end: killed", extra={"worker": child.index})
            child.kill()

    async def _end_all(self) -> None:
        if self._registration is not None:
            await self._registry.deregister(self._registration.id)
        for child in self._children.values():
            child.leaving = True
            child.tell(control.STOP)
        late = asyncio.get_running_loop().time() + self._drain + _BEYOND_DRAIN_S
        for child in tuple(self._children.values()):
            try:
                async with asyncio.timeout_at(late):
                    await child.exit()
            except TimeoutError:
                _log.error("worker does not end: killed", extra={"worker": child.index})
                child.kill()

    # Children

    async def _spawn(self) -> Child:
        index = next(i for i in range(len(self._indices) + 1) if i not in self._indices)
        self._indices.add(index)
        self._numbers += 1
        child = await Child.spawn(
            self._program, index, self._numbers, self._listen, self._directory
        )
        self._children[index] = child
        self._tasks.create_task(self._follow(child), name=f"worker-{index}")
        _log.info("worker started", extra={"worker": index, "pid": child.pid})
        return child

    async def _follow(self, child: Child) -> None:
        await child.ended(self._hear)
        del self._children[child.index]
        self._indices.discard(child.index)
        self._tell_roster()

    def _hear(self, child: Child, message: dict[str, Any]) -> None:
        match message["kind"]:
            case control.REACHABLE:
                child.reachable = True
                child.tell(control.STATE, shared=self._shared, revisions=self._revisions)
                self._tell_roster()
            case control.SERVING:
                self._ever_served = True
                child.serving.set()
                self._registration = Registration(**message["registration"])
                self._registered.set()
                self._tell_roster()
            case control.SHARE:
                self._share(message["key"], message["value"], message["after"])
            case control.FAILED:
                child.cause = message["cause"]

    def _share(self, key: str, value: Any, after: int | None) -> None:
        revision = self._revisions.get(key, 0)
        if after not in (None, revision):
            return  # the sender is about to hear of the one that came before
        self._revisions[key] = revision = revision + 1
        if value is None:
            self._shared.pop(key, None)
        else:
            self._shared[key] = value
        if key == LOG_LEVEL and value is not None:
            logs.set_level(value)
        for child in self._by_index():
            if child.reachable:
                child.tell(control.SHARED, key=key, value=value, revision=revision)

    def _tell_roster(self) -> None:
        present = [child for child in self._by_index() if child.reachable]
        workers = [(child.index, child.number, child.serving.is_set()) for child in present]
        for child in present:
            child.tell(control.ROSTER, workers=workers)

    def _by_index(self) -> list[Child]:
        return [self._children[index] for index in sorted(self._children)]

    async def _register(self) -> None:
        """Registers the service once one worker serves, and anew when one says otherwise."""
        held: Registration | None = None
        while True:
            await self._registered.wait()
            self._registered.clear()
            if self._registration is not None and self._registration != held:
                held = self._registration
                await self._registry.register(held)
                _log.info("serving", extra={"id": held.id})
