"""An audit trail in files: crashes, full disks, restarts and retention leave it whole."""

from __future__ import annotations

import resource
import stat
from pathlib import Path

import pytest

from services.chassis.audit.audit_key import KeyFileError, read_public_key, signing_key
from services.chassis.audit.entry import Act, ChainedEntry, chain
from services.chassis.audit.file_sink import FileSink
from services.chassis.audit.head import Signer
from services.chassis.audit.segments import CorruptError, segments_of, trail_name
from services.chassis.audit.verify import Kind
from services.chassis.audit.wiring import prune
from tests.support.audit import SIGNER, act, acts_in, running, the_report

DAY = 86_400.0
BEGAN = 1_790_000_000.0


def entries_after(
    last: ChainedEntry | None, count: int, *, time: float = BEGAN, trail: str = "t"
) -> list[ChainedEntry]:
    entries = []
    for number in range(count):
        last = chain(last, act(number), trail=trail, time=time)
        entries.append(last)
    return entries


async def written(sink: FileSink, count: int, *, time: float = BEGAN) -> list[ChainedEntry]:
    entries = entries_after(sink.last, count, time=time)
    await sink.append(entries, SIGNER.sign(entries[-1], time=time))
    sink.last = entries[-1]
    return entries


async def test_a_trail_goes_on_after_a_restart(tmp_path: Path) -> None:
    for _ in range(3):
        sink = FileSink.open(tmp_path, "t")
        assert sink.cut == 0
        await written(sink, 5)
        await sink.close()
    report = the_report(tmp_path)
    assert report.intact, report.findings
    assert (report.entries, report.signed) == (15, 15)


async def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    sink = FileSink.open(directory, "t")
    await written(sink, 1)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    await sink.close()


@pytest.mark.parametrize("left", [1, 17, 200])
async def test_a_line_that_a_crash_cut_in_half_is_removed_and_the_trail_goes_on(
    tmp_path: Path, left: int
) -> None:
    sink = FileSink.open(tmp_path, "t")
    await written(sink, 3)
    (next_,) = entries_after(sink.last, 1)
    await sink.close()
    (segment,) = segments_of(tmp_path)
    with segment.path.open("ab") as file:
        file.write(next_.line()[:left])
    assert [f.kind for f in the_report(tmp_path).findings] == [Kind.UNREADABLE]
    sink = FileSink.open(tmp_path, "t")
    assert sink.cut == left
    await written(sink, 2)
    await sink.close()
    report = the_report(tmp_path)
    assert report.intact, report.findings
    assert report.entries == 5


async def test_zeros_after_a_power_failure_and_half_a_head_are_removed(tmp_path: Path) -> None:
    sink = FileSink.open(tmp_path, "t")
    await written(sink, 3)
    await sink.close()
    (segment,) = segments_of(tmp_path)
    with segment.path.open("ab") as file:
        file.write(bytes(600_000))
    with (tmp_path / "t.heads.jsonl").open("ab") as file:
        file.write(b'{"hash":')
    sink = FileSink.open(tmp_path, "t")
    assert sink.cut == 600_008
    assert sink.head is not None
    assert sink.head.sequence == 3
    await sink.close()
    assert the_report(tmp_path).intact


async def test_a_segment_that_never_got_its_first_entry_is_removed(tmp_path: Path) -> None:
    sink = FileSink.open(tmp_path, "t")
    await written(sink, 3)
    await sink.close()
    (tmp_path / f"t-{4:020}.jsonl").write_bytes(b'{"entry"')
    sink = FileSink.open(tmp_path, "t")
    assert sink.last is not None
    assert sink.last.entry.sequence == 3
    await written(sink, 1)
    await sink.close()
    assert the_report(tmp_path).intact


async def test_a_trail_that_ends_with_something_else_is_not_gone_on_with(tmp_path: Path) -> None:
    sink = FileSink.open(tmp_path, "t")
    await written(sink, 3)
    await sink.close()
    (segment,) = segments_of(tmp_path)
    with segment.path.open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(CorruptError, match="does not end with an entry"):
        FileSink.open(tmp_path, "t")


async def test_segments_begin_by_size_and_by_day(tmp_path: Path) -> None:
    sink = FileSink.open(tmp_path, "t", segment_bytes=1000)
    for number in range(4):
        await written(sink, 4, time=BEGAN + number)
    await written(sink, 1, time=BEGAN + DAY)
    await written(sink, 1, time=BEGAN + DAY + 1)
    await sink.close()
    assert [segment.first for segment in segments_of(tmp_path)] == [1, 5, 9, 13, 17]
    report = the_report(tmp_path)
    assert report.intact, report.findings
    # One whole segment less, and it shows.
    segments_of(tmp_path)[2].path.unlink()
    assert {f.kind for f in the_report(tmp_path).findings} == {Kind.MISSING}


async def test_processes_that_run_at_once_have_a_trail_each(tmp_path: Path) -> None:
    one, two = FileSink.open(tmp_path, "t"), FileSink.open(tmp_path, "t")
    assert (one.trail, two.trail) == ("t", "t.2")
    await one.close()
    three = FileSink.open(tmp_path, "t")
    assert three.trail == "t"
    for sink in (two, three):
        await sink.close()


def test_a_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    (tmp_path / "t.heads.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        FileSink.open(tmp_path, "t")


async def test_a_full_disk_leaves_no_half_written_line_and_nothing_twice(tmp_path: Path) -> None:
    sink = FileSink.open(tmp_path, "t")
    await written(sink, 3)
    more = entries_after(sink.last, 50)
    head = SIGNER.sign(more[-1], time=BEGAN)
    (segment,) = segments_of(tmp_path)
    before = segment.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system writes as far as it can, and then no more, as with a disk that is full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 1000, hard))
    try:
        for _ in range(2):
            with pytest.raises(OSError, match="File too large"):
                await sink.append(more, head)
            assert segment.path.read_bytes() == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await sink.append(more, head)
    await sink.append(more, head)
    await sink.close()
    report = the_report(tmp_path)
    assert report.intact, report.findings
    assert report.entries == 53


async def test_what_is_too_old_is_removed_and_the_rest_verifies(tmp_path: Path) -> None:
    sink = FileSink.open(tmp_path, "t")
    for day in range(4):
        await written(sink, 3, time=BEGAN + day * DAY)
    async with running(sink, last=sink.last, clock=lambda: BEGAN + 4 * DAY) as trail:
        assert await prune(trail, sink, SIGNER, BEGAN - 1) == 0
        assert await prune(trail, sink, SIGNER, BEGAN + 1.5 * DAY) == 2
        await trail.record(act(action="after"))
    assert [segment.first for segment in segments_of(tmp_path)] == [7, 10, 13]
    report = the_report(tmp_path)
    assert report.intact, report.findings
    assert report.absent == [(1, 6)]
    assert [a.action for a in acts_in(tmp_path)][-3:] == ["trail.pruned", "trail.pruned", "after"]
    # It goes on from there, and again.
    sink = FileSink.open(tmp_path, "t")
    async with running(sink, last=sink.last, clock=lambda: BEGAN + 9 * DAY) as trail:
        assert await prune(trail, sink, SIGNER, BEGAN + 3.5 * DAY) == 2
        await trail.record(act(action="later"))
    report = the_report(tmp_path)
    assert report.intact, report.findings
    # Whoever removes more than that is found, also when it is a whole segment.
    segments_of(tmp_path)[0].path.unlink()
    assert Kind.START_MISSING in {f.kind for f in the_report(tmp_path).findings}


async def test_the_segment_being_written_is_never_removed(tmp_path: Path) -> None:
    sink = FileSink.open(tmp_path, "t")
    await written(sink, 3)
    assert sink.removable(BEGAN + 1000 * DAY) is None
    await sink.close()


async def test_an_old_time_at_its_end_makes_no_segment_old(tmp_path: Path) -> None:
    sink = FileSink.open(tmp_path, "t")
    await written(sink, 3, time=BEGAN + 100 * DAY)
    await sink.append(entries_after(sink.last, 1, time=BEGAN), None)
    await sink.close()
    sink = FileSink.open(tmp_path, "t")
    await written(sink, 1, time=BEGAN + 101 * DAY)
    assert len(segments_of(tmp_path)) == 2
    assert sink.removable(BEGAN + 50 * DAY) is None
    assert sink.removable(BEGAN + 150 * DAY) is not None
    await sink.close()


async def test_what_was_cut_off_while_nobody_wrote_is_found_after_it_was_gone_on_with(
    tmp_path: Path,
) -> None:
    sink = FileSink.open(tmp_path, "t")
    await written(sink, 5)
    await sink.close()
    (segment,) = segments_of(tmp_path)
    lines = segment.path.read_bytes().splitlines(keepends=True)
    segment.path.write_bytes(b"".join(lines[:3]))
    assert {f.kind for f in the_report(tmp_path).findings} == {Kind.TRUNCATED}
    sink = FileSink.open(tmp_path, "t")
    assert (sink.written, sink.head.sequence if sink.head else 0) == (3, 5)
    entries = entries_after(sink.last, 9, time=BEGAN + 1)
    await sink.append(entries, SIGNER.sign(entries[-1], time=BEGAN))
    await sink.close()
    assert {f.kind for f in the_report(tmp_path).findings} == {Kind.HEAD_DIFFERS}


def test_names_of_trails_are_names_of_files() -> None:
    assert trail_name("router-1") == "router-1"
    assert trail_name("../../etc/passwd") == "etc-passwd"
    assert trail_name("///") == "trail"
    assert len(trail_name("x" * 500)) == 100


# The key


def test_a_key_is_made_once_and_its_public_half_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "audit.key"
    made = Signer(signing_key(path))
    assert Signer(signing_key(path)).public_key == made.public_key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    public = path.with_name("audit.key.pub")
    assert read_public_key(str(public)) == made.public_key
    assert read_public_key(made.public_key.hex()) == made.public_key
    assert sorted(p.name for p in path.parent.iterdir()) == ["audit.key", "audit.key.pub"]
    with pytest.raises(KeyFileError):
        read_public_key(str(path))


def test_a_file_that_holds_no_such_key_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    path.write_text("-----BEGIN nothing")
    with pytest.raises(KeyFileError, match="does not hold an Ed25519 private key"):
        signing_key(path)
    assert path.read_text() == "-----BEGIN nothing"


async def test_nothing_that_is_written_can_begin_a_line(tmp_path: Path) -> None:
    sink = FileSink.open(tmp_path, "t")
    forged = chain(None, act(), trail="t", time=BEGAN).line().decode()
    async with running(sink) as trail:
        await trail.record(Act(f"x\n{forged}", target=f"\r\n{forged}\u2028\x1b[2J"))
    (segment,) = segments_of(tmp_path)
    assert len(segment.path.read_bytes().splitlines()) == 1
    assert the_report(tmp_path).intact
