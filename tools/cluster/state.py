"""The state file of a cluster: which processes it has, so that another program can end them.

Every change replaces the file whole; a reader never sees half of one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from tools.cluster.process import ProcessRecord

STATE = "state.json"


def save(run_dir: Path, records: Sequence[ProcessRecord]) -> None:
    """Records the processes in the order in which they were started; removes the file for none."""
    path = run_dir / STATE
    if not records:
        path.unlink(missing_ok=True)
        return
    half = path.with_suffix(".part")
    half.write_text(json.dumps([record.to_json() for record in records], indent=2) + "\n")
    half.replace(path)


def load(run_dir: Path) -> tuple[ProcessRecord, ...]:
    """The processes of the cluster kept there; none when there is no state file."""
    try:
        text = (run_dir / STATE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    return tuple(ProcessRecord(**entry) for entry in json.loads(text))


TIERS = (("router",), ("cloud", "engine"), ("auth", "provider-simulator"), ("consul",))
"""Who ends with whom, first to last: callers before those they call."""


def in_order(records: Sequence[ProcessRecord]) -> list[list[ProcessRecord]]:
    """The processes in groups that end together, first to last."""
    groups: list[list[ProcessRecord]] = [[] for _ in TIERS]
    for record in records:
        for number, names in enumerate(TIERS):
            # An engine may have any name: what no other tier names is one.
            if record.name in names or (number == 1 and not _elsewhere(record.name)):
                groups[number].append(record)
                break
    return [group for group in groups if group]


def _elsewhere(name: str) -> bool:
    return any(name in names for names in (TIERS[0], TIERS[2], TIERS[3]))


async def stop(records: Sequence[ProcessRecord]) -> list[str]:
    """Ends the processes in order; the names of those that needed force.

    A process that is gone is no error. Every process is tried, also when one cannot be ended.
    """
    forced: list[str] = []
    failures: list[BaseException] = []
    for group in in_order(records):
        ends = await asyncio.gather(*(record.end() for record in group), return_exceptions=True)
        for record, end in zip(group, ends, strict=True):
            if isinstance(end, BaseException):
                failures.append(end)
            elif end:
                forced.append(record.name)
    if failures:
        raise failures[0]
    return forced
