"""Runs one set-up command quietly: a line when it starts, a sign of life, a line when it ends.

The command's own output goes to a log file. A command that fails is tried again as often as asked
for; in the end its last lines and the file's name are shown. It runs before the virtual environment
exists, so it uses the standard library alone. It decides nothing about what is to be set up: the
Makefile does.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HEARTBEAT = 15.0
"""Seconds between signs of life."""

CANNOT_RUN = 127
"""Exit status for a program that is not there, as shells have it."""

TAIL = 25
"""Lines of the log that a failure shows."""

PAUSE = 5.0
"""Seconds before the second try; three times as long before each further one."""


def say(text: str) -> None:
    """Prints one progress line at once, also into a pipe."""
    print(text, file=sys.stderr, flush=True)


def run(label: str, command: list[str], log: Path, hint: str = "", tries: int = 1) -> int:
    """Runs the command with its output in `log`; returns its exit status, that of the last try.

    `hint` is printed after a failure: what the reader can do about it. More than one of `tries`
    is for what a network may fail once.
    """
    pause = PAUSE
    for left in range(tries - 1, -1, -1):
        status = _once(label, command, log)
        if status in (0, CANNOT_RUN) or not left:
            break
        say(f"    … {label}: again in {pause:.0f} s")
        time.sleep(pause)
        pause *= 3
    if status and hint:
        say(f"\n{hint}")
    return status


def _once(label: str, command: list[str], log: Path) -> int:
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    say(f"  → {label}")
    with log.open("w", encoding="utf-8") as out:
        try:
            child = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
        except OSError as error:
            say(f"  ✗ {label}: cannot run {command[0]}: {error.strerror}")
            return CANNOT_RUN
        try:
            while True:
                try:
                    status = child.wait(HEARTBEAT)
                    break
                except subprocess.TimeoutExpired:
                    say(f"    … {label}: {time.monotonic() - started:.0f} s")
        except BaseException:
            child.terminate()
            child.wait()
            raise
    took = time.monotonic() - started
    if status == 0:
        say(f"  ✓ {label} ({took:.1f} s)")
        return 0
    say(f"  ✗ {label}: exit status {status} after {took:.1f} s. The end of {log}:")
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]:
        say(f"      {line}")
    return status


def main(arguments: list[str] | None = None) -> int:
    """The command line: `step.py --log FILE [--hint TEXT] [--tries N] LABEL -- COMMAND…`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True, help="file for the command's output")
    parser.add_argument("--hint", default="", help="what to do when the command fails")
    parser.add_argument("--tries", type=int, default=1, help="how often it is run until it works")
    parser.add_argument("label", help="what the step does, for the reader")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and then the command")
    options = parser.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command after --")
    try:
        return run(options.label, command, options.log, options.hint, options.tries)
    except KeyboardInterrupt:
        say(f"  ✗ {options.label}: interrupted")
        return 130


if __name__ == "__main__":
    os.environ.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    sys.exit(main())
