"""The life of a service process: arguments, settings, logs, signals, exit code.

A service's __main__ hands over the environment; nothing below reads it again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import IntEnum
from typing import TypeVar

import uvloop

from services.chassis import logs
from services.chassis import settings as settings_module
from services.chassis.errors import Fault
from services.chassis.settings import CommonSettings, SettingsError

_log = logging.getLogger(__name__)

S = TypeVar("S", bound=CommonSettings)


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
    running: Callable[[S], AbstractAsyncContextManager[object]],
    environ: Mapping[str, str],
    argv: Sequence[str],
) -> int:
    """Runs a service until SIGTERM or SIGINT and returns the exit code.

    The first signal starts the ordered shutdown, a second one ends the process
    at once. Bad settings are all listed on stderr and end it with code 2.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {settings_type.__module__.rpartition('.')[0]}",
        description=f"Runs {service}. Settings come from the environment:",
        epilog=settings_module.describe(settings_type, prefix),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check-settings", action="store_true", help="check the settings and exit")
    arguments = parser.parse_args(argv)
    try:
        settings = settings_module.load(settings_type, prefix, environ)
    except SettingsError as error:
        return _bad_settings(service, error)
    if arguments.check_settings:
        print(f"{service}: the settings are good")
        return ExitCode.OK
    logs.configure(service, settings.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(service, settings, running))


def _bad_settings(service: str, error: SettingsError) -> int:
    for problem in error.problems:
        print(f"{service}: {problem}", file=sys.stderr)
    print(f"{service}: see --help for the settings", file=sys.stderr)
    return ExitCode.BAD_SETTINGS


async def _run(
    service: str, settings: S, running: Callable[[S], AbstractAsyncContextManager[object]]
) -> int:
    stop = asyncio.Event()
    body = asyncio.current_task()
    started = False

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(ExitCode.INTERRUPTED_TWICE)
        _log.info("stopping", extra={"signal": signal.Signals(number).name})
        stop.set()
        if not started and body is not None:
            # Loading a model takes a while; nothing is lost by giving it up.
            body.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        async with running(settings):
            started = True
            await stop.wait()
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        return ExitCode.OK
    except Exception as error:  # noqa: BLE001 - the process edge: the log has it, the code says it
        return _failed(service, error if started else _sole_cause(error))
    return ExitCode.OK


def _sole_cause(error: Exception) -> Exception:
    """What prevented the start: the task groups around it each wrapped it once."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _failed(service: str, error: Exception) -> int:
    if isinstance(error, SettingsError):
        return _bad_settings(service, error)
    if isinstance(error, Fault | OSError):
        _log.error("cannot run", extra={"cause": str(error)})
    else:
        _log.error("failed", exc_info=error)
    return ExitCode.FAILED
