"""The life of a service process: arguments, settings, logs, signals, exit code.

A service with several workers lives as a supervisor, which starts this same program for each.

A service's __main__ hands over the environment; nothing below reads it again.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import uvloop

from services.chassis import logs
from services.chassis import settings as settings_module
from services.chassis.common_settings import CommonSettings, WorkerSettings
from services.chassis.errors import Fault
from services.chassis.registry import open_registry
from services.chassis.settings import SettingsError
from services.chassis.workers import Assignment, Worker
from services.chassis.workers.child import Program
from services.chassis.workers.shared_port import reserved
from services.chassis.workers.supervisor import CannotRunError, Supervisor

_log = logging.getLogger(__name__)

# Objects made and not freed before the collector looks; Python's own 700 are one step of 700
# streams.
_COLLECT_AFTER = 10_000

S = TypeVar("S", bound=CommonSettings)
Life = AbstractAsyncContextManager[object]


class ExitCode(IntEnum):
    """How a service process ends."""

    OK = 0
    FAILED = 1
    BAD_SETTINGS = 2
    INTERRUPTED_TWICE = 130


def main(
    service: str,
    prefix: str,
    settings_type: type[S],
    running: Callable[[S], Life],
    environ: Mapping[str, str],
    argv: Sequence[str],
    *,
    running_worker: Callable[[S, Worker], Life] | None = None,
    checks: Mapping[str, Callable[[Path], Sequence[str]]] = MappingProxyType({}),
) -> int:
    """Runs a service until SIGTERM or SIGINT and returns the exit code.

    The first signal starts the ordered shutdown, a second one ends the process
    at once. Bad settings are all listed on stderr and end it with code 2.
    `running_worker` runs it as one of several; it needs WorkerSettings. `checks`: kinds of files
    that `--check-KIND FILE` looks at instead; each check returns what is wrong.
    """
    module = settings_type.__module__.rpartition(".")[0]
    arguments = _parser(service, module, prefix, settings_type, checks).parse_args(argv)
    for kind, check in checks.items():
        path: Path | None = getattr(arguments, f"check_{kind}")
        if path is not None:
            return _checked(kind, path, check)
    if getattr(arguments, "workers", None) is not None:
        environ = {k: v for k, v in environ.items() if k != f"{prefix}WORKERS_FILE"}
        environ[f"{prefix}WORKERS"] = str(arguments.workers)
    try:
        settings = settings_module.load(settings_type, prefix, environ)
    except SettingsError as error:
        return _bad_settings(service, error)
    if arguments.check_settings:
        print(f"{service}: the settings are good")
        return ExitCode.OK
    life: Coroutine[Any, Any, int]
    if running_worker is not None and getattr(arguments, "worker", None):
        assignment = Assignment.from_argument(arguments.worker)
        settings = replace(
            settings,
            listen=assignment.listen,
            http_listen=f"unix:{assignment.http_socket}",
        )
        logs.configure(service, settings.log_level, worker=assignment.index)
        life = _run_worker(service, settings, running_worker, assignment)
    else:
        logs.configure(service, settings.log_level)
        if isinstance(settings, WorkerSettings) and settings.workers > 1:
            life = _supervise(settings, Program(module=module, environ=environ))
        else:
            life = _run_alone(service, settings, running)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(life)


def _parser(
    service: str,
    module: str,
    prefix: str,
    settings_type: type[CommonSettings],
    checks: Iterable[str],
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=f"Runs {service}. Settings come from the environment:",
        epilog=settings_module.describe(settings_type, prefix),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check-settings", action="store_true", help="check the settings and exit")
    for kind in checks:
        parser.add_argument(
            f"--check-{kind}",
            type=Path,
            metavar="FILE",
            help=f"check a {kind} file, name every fault, and exit; needs no settings",
        )
    if issubclass(settings_type, WorkerSettings):
        parser.add_argument(
            "--workers",
            type=int,
            metavar="N",
            help=f"overrides {prefix}WORKERS; SIGHUP restarts the workers one by one",
        )
        # Given by a supervisor to the workers that it starts.
        parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def _bad_settings(service: str, error: SettingsError) -> int:
    for problem in error.problems:
        print(f"{service}: {problem}", file=sys.stderr)
    print(f"{service}: see --help for the settings", file=sys.stderr)
    return ExitCode.BAD_SETTINGS


def _checked(kind: str, path: Path, check: Callable[[Path], Sequence[str]]) -> int:
    problems = check(path)
    for problem in problems:
        print(f"{path}: {problem}", file=sys.stderr)
    if problems:
        return ExitCode.BAD_SETTINGS
    print(f"{path}: the {kind} is good")
    return ExitCode.OK


class _Stop:
    """The wish that the current task's service ends; only the first one counts."""

    def __init__(self) -> None:
        self.wished = asyncio.Event()
        self.started = False
        self._body = asyncio.current_task()

    def wish(self, cause: str) -> None:
        if self.wished.is_set():
            return
        _log.info("stopping", extra={"cause": cause})
        self.wished.set()
        if not self.started and self._body is not None:
            # Loading a model takes a while; nothing is lost by giving it up.
            self._body.cancel()


def _on_signals(handler: Callable[[str], None], *numbers: signal.Signals) -> None:
    loop = asyncio.get_running_loop()
    for number in numbers:
        loop.add_signal_handler(number, handler, number.name)


async def _run_alone(service: str, settings: S, running: Callable[[S], Life]) -> int:
    stop = _Stop()

    def on_signal(name: str) -> None:
        if stop.wished.is_set():
            os._exit(ExitCode.INTERRUPTED_TWICE)
        stop.wish(name)

    _on_signals(on_signal, signal.SIGTERM, signal.SIGINT)
    return await _live(service, running(settings), stop)


async def _run_worker(
    service: str, settings: S, running: Callable[[S, Worker], Life], assignment: Assignment
) -> int:
    # Signals to a whole process group are the supervisor's to act on.
    _on_signals(lambda _: None, signal.SIGINT, signal.SIGHUP)
    stop = _Stop()
    async with Worker.join(assignment, stop.wish) as worker:

        def retire(name: str) -> None:
            if not stop.wished.is_set():
                worker.retiring = True
                stop.wish(name)

        _on_signals(retire, signal.SIGTERM)
        return await _live(service, running(settings, worker), stop, failed=worker.failed)


async def _supervise(settings: WorkerSettings, program: Program) -> int:
    try:
        with reserved(settings.listen) as listen:
            registry = open_registry(
                settings.registry,
                token=settings.registry_token,
                stale_for=settings.registry_stale_for,
            )
            supervisor = Supervisor(settings, program, registry, listen)
            stop = _Stop()
            stop.started = True

            def on_signal(name: str) -> None:
                if stop.wished.is_set():
                    supervisor.kill()
                    os._exit(ExitCode.INTERRUPTED_TWICE)
                stop.wish(name)
                supervisor.stop()

            _on_signals(on_signal, signal.SIGTERM, signal.SIGINT)
            _on_signals(lambda _: supervisor.restart(), signal.SIGHUP)
            try:
                await supervisor.run()
            finally:
                await registry.close()
    except CannotRunError as error:
        _log.error("cannot run", extra={"cause": str(error)})
        return ExitCode.BAD_SETTINGS if error.code == ExitCode.BAD_SETTINGS else ExitCode.FAILED
    except SettingsError as error:
        _log.error("cannot run", extra={"cause": "; ".join(error.problems)})
        return ExitCode.BAD_SETTINGS
    except (OSError, ValueError) as error:
        _log.error("cannot run", extra={"cause": str(error)})
        return ExitCode.FAILED
    return ExitCode.OK


async def _live(
    service: str,
    life: Life,
    stop: _Stop,
    *,
    failed: Callable[[str], None] = lambda _: None,
) -> int:
    """Enters the service and leaves it once that is wished; `failed` hears why it could not."""
    try:
        async with life:
            stop.started = True
            _keep_what_is_here()
            await stop.wished.wait()
    except asyncio.CancelledError:
        if not stop.wished.is_set():
            raise
        return ExitCode.OK
    except Exception as error:  # noqa: BLE001 - the process edge: the log has it, the code says it
        cause = error if stop.started else _sole_cause(error)
        failed(_public(cause))
        return _failed(service, cause)
    return ExitCode.OK


def _keep_what_is_here() -> None:
    """Modules and what the service was built of stay: the collector need not look at them again.

    A full collection stops every stream of the process for as long as it looks. What a request
    leaves behind is freed without the collector, which may look for the rest less often.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)


def _sole_cause(error: Exception) -> Exception:
    """What prevented the start: the task groups around it each wrapped it once."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _public(error: Exception) -> str:
    """What a worker's supervisor is to say of its end."""
    if isinstance(error, SettingsError):
        return "; ".join(error.problems)
    if isinstance(error, Fault | OSError):
        return str(error)
    return f"{type(error).__name__}; its log says more"


def _failed(service: str, error: Exception) -> int:
    if isinstance(error, SettingsError):
        return _bad_settings(service, error)
    if isinstance(error, Fault | OSError):
        _log.error("cannot run", extra={"cause": str(error)})
    else:
        _log.error("failed", exc_info=error)
    return ExitCode.FAILED
