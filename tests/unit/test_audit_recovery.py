"""A process that goes on with a trail does not make credible what nobody signed before it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from opentelemetry.metrics import NoOpMeter

from services.chassis.audit.audit_key import read_public_key
from services.chassis.audit.entry import Act, ChainedEntry, chain, parse_line
from services.chassis.audit.file_sink import FileSink
from services.chassis.audit.reading import verify_path
from services.chassis.audit.recovery import Doubts, doubts_about
from services.chassis.audit.segments import heads_path, segments_of
from services.chassis.audit.verify import PRUNED, RECOVERED, SKIPPED, Kind, Report
from services.chassis.audit.wiring import open_trail
from services.chassis.common_settings import CommonSettings
from tests.support.audit import SIGNER, MemorySink, act, acts_in, running
from tests.support.waiting import until


async def run_once(directory: Path, acts: int = 0) -> None:
    """What a process does from its start to its end."""
    settings = CommonSettings(audit_dir=directory)
    async with open_trail("t", settings, NoOpMeter("t")) as trail, asyncio.TaskGroup() as group:
        task = group.create_task(trail.run())
        for number in range(acts):
            await trail.record(act(number))
        await trail.finish(30)
        task.cancel()


def report_of(directory: Path) -> Report:
    key = read_public_key(str(directory / "audit.key.pub"))
    (report,) = verify_path(directory, public_keys=[key])
    return report


def stating(action: str, first: int, last: ChainedEntry) -> Act:
    return Act(
        action,
        details={
            "first_sequence": first,
            "last_sequence": last.entry.sequence,
            "last_hash": last.hash.hex(),
        },
    )


def entries_of(directory: Path) -> list[ChainedEntry]:
    (segment,) = segments_of(directory, "t")
    return [parse_line(line) for line in segment.path.read_bytes().splitlines(keepends=True)]


def write(directory: Path, entries: list[ChainedEntry]) -> None:
    (segment,) = segments_of(directory, "t")
    segment.path.write_bytes(b"".join(entry.line() for entry in entries))


@pytest.mark.parametrize(
    ("action", "first", "kind"),
    [(SKIPPED, 4, Kind.MISSING), (PRUNED, 1, Kind.START_MISSING)],
)
async def test_a_forged_statement_is_found_before_and_after_the_trail_is_gone_on_with(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    action: str,
    first: int,
    kind: Kind,
) -> None:
    await run_once(tmp_path, acts=10)
    entries = entries_of(tmp_path)
    forged = chain(entries[-1], stating(action, first, entries[6]), trail="t", time=time.time())
    write(tmp_path, [*entries[: first - 1], *entries[7:], forged])
    assert {f.kind for f in report_of(tmp_path).findings} == {kind}
    for _ in range(2):
        await run_once(tmp_path)
        assert {f.kind for f in report_of(tmp_path).findings} == {kind}
    # Said once: the next process finds all of it under a head.
    (recovered,) = [a for a in acts_in(tmp_path) if a.action == RECOVERED]
    assert not recovered.succeeded
    assert recovered.details["unsigned_gap_at"] == forged.entry.sequence
    assert "ERROR" in {r.levelname for r in caplog.records if "recovered" in r.message}


async def test_a_head_that_differs_from_its_entry_is_said_at_the_start(tmp_path: Path) -> None:
    await run_once(tmp_path, acts=3)
    entries = entries_of(tmp_path)
    other = chain(entries[-2], Act("another"), trail="t", time=time.time())
    write(tmp_path, [*entries[:-1], other])
    await run_once(tmp_path)
    (recovered,) = [a for a in acts_in(tmp_path) if a.action == RECOVERED]
    assert not recovered.succeeded
    assert recovered.details["head_differs"] is True


async def test_a_trail_as_it_was_left_raises_no_doubt(tmp_path: Path) -> None:
    for _ in range(3):
        await run_once(tmp_path, acts=3)
    assert RECOVERED not in {a.action for a in acts_in(tmp_path)}
    assert report_of(tmp_path).intact


async def test_a_head_of_a_stranger_vouches_for_nothing(tmp_path: Path) -> None:
    sink = FileSink.open(tmp_path, "t")
    last: ChainedEntry | None = None
    for number in range(3):
        last = chain(last, act(number), trail="t", time=1.0)
        await sink.append([last], None)
    assert last is not None
    skipped = chain(last, stating(SKIPPED, 1, last), trail="t", time=1.0)
    head = SIGNER.sign(skipped, time=1.0)
    await sink.append([skipped], head)
    await sink.close()
    assert heads_path(tmp_path, "t").exists()
    assert doubts_about(tmp_path, "t", head, SIGNER.public_key) == Doubts()
    assert doubts_about(tmp_path, "t", head, bytes(32)) == Doubts(4)
    assert doubts_about(tmp_path, "t", None, SIGNER.public_key) == Doubts(4)


async def test_what_a_sink_lacks_is_stated_under_a_head_at_once() -> None:
    good, bad = MemorySink("good"), MemorySink("bad")
    bad.broken = True
    # A clock that stands still: no head is due by time.
    async with running(good, bad, spool=100, clock=lambda: 1.0) as trail:
        for number in range(500):
            await trail.record(act(number))
        bad.broken = False

        async def stated() -> bool:
            return SKIPPED in bad.actions

        await until(stated)
        (place,) = [e.entry.sequence for e in bad.entries if e.entry.act.action == SKIPPED]
        assert bad.heads[-1].sequence >= place
