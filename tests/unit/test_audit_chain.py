"""The chain of an audit trail: whatever is changed in it, removed from it or added is found."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.audit.entry import (
    CONTENT,
    GENESIS,
    LONGEST_LINE,
    Act,
    ChainedEntry,
    chain,
    parse_line,
)
from services.chassis.audit.head import Signer, is_genuine, parse_head
from services.chassis.audit.verify import PRUNED, RECOVERED, SKIPPED, Kind, verify

TRAIL = "router"
SIGNER = Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))

_text = st.text(max_size=30)
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | _text
_acts = st.builds(
    Act,
    action=_text,
    client_id=_text,
    tenant=_text,
    target=_text,
    succeeded=st.booleans(),
    peer=_text,
    details=st.dictionaries(_text, _scalars, max_size=5),
)


def trail_of(acts: Sequence[Act], *, trail: str = TRAIL) -> list[ChainedEntry]:
    entries: list[ChainedEntry] = []
    for number, act in enumerate(acts):
        previous = entries[-1] if entries else None
        entries.append(chain(previous, act, trail=trail, time=1_790_000_000.25 + number))
    return entries


def lines_of(entries: Sequence[ChainedEntry]) -> list[bytes]:
    return [entry.line() for entry in entries]


def numbered(count: int) -> list[ChainedEntry]:
    return trail_of([Act("model.generate", details={"request_id": str(n)}) for n in range(count)])


def head_of(entry: ChainedEntry, signer: Signer = SIGNER) -> bytes:
    return signer.sign(entry, time=1_790_000_000.0).line()


def kinds(lines: Sequence[bytes], heads: Sequence[bytes], **more: object) -> set[Kind]:
    more.setdefault("public_keys", [SIGNER.public_key])
    report = verify(lines, heads, **more)  # type: ignore[arg-type]
    return {finding.kind for finding in report.findings}


@given(st.lists(_acts, min_size=1, max_size=6))
def test_any_acts_make_an_intact_trail_of_single_lines(acts: list[Act]) -> None:
    entries = trail_of(acts)
    lines = lines_of(entries)
    report = verify(lines, [head_of(entries[-1])], public_keys=[SIGNER.public_key])
    assert report.intact, report.findings
    assert (report.first, report.last, report.signed) == (1, len(acts), len(acts))
    for entry, line in zip(entries, lines, strict=True):
        assert parse_line(line).line() == line
        assert parse_line(line).hash == entry.hash
        assert line.count(b"\n") == 1
        assert all(0x20 <= byte < 0x7F for byte in line[:-1])


@settings(max_examples=1000)
@given(st.data())
def test_any_single_altered_byte_is_found(data: st.DataObject) -> None:
    entries = trail_of(data.draw(st.lists(_acts, min_size=1, max_size=4)))
    whole = bytearray(b"".join(lines_of(entries)))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    assert kinds(bytes(whole).splitlines(keepends=True), [head_of(entries[-1])])


def test_each_byte_of_a_trail_altered_to_each_bit_is_found() -> None:
    entries = numbered(3)
    whole = b"".join(lines_of(entries))
    heads = [head_of(entries[-1])]
    for place in range(len(whole)):
        for bit in range(8):
            altered = bytearray(whole)
            altered[place] ^= 1 << bit
            assert kinds(bytes(altered).splitlines(keepends=True), heads), (place, bit)


def test_each_byte_of_a_head_altered_is_found() -> None:
    entries = numbered(3)
    head = head_of(entries[-1])
    for place in range(len(head)):
        altered = bytearray(head)
        altered[place] ^= 1 << (place % 8)
        assert kinds(lines_of(entries), [bytes(altered)]), place


@given(st.data())
def test_removed_moved_inserted_and_cut_entries_are_found(data: st.DataObject) -> None:
    entries = numbered(data.draw(st.integers(2, 9)))
    heads = [head_of(e) for e in entries if data.draw(st.booleans()) or e is entries[-1]]
    lines = lines_of(entries)
    at, other = data.draw(
        st.tuples(*[st.integers(0, len(lines) - 1)] * 2).filter(lambda pair: pair[0] != pair[1])
    )
    change = data.draw(st.sampled_from(["remove", "swap", "repeat", "insert", "cut"]))
    if change == "remove":
        del lines[at]
        expected = {Kind.START_MISSING, Kind.MISSING, Kind.TRUNCATED}
    elif change == "swap":
        lines[at], lines[other] = lines[other], lines[at]
        expected = {Kind.REORDERED}
    elif change == "repeat":
        lines.insert(other, lines[at])
        expected = {Kind.REPEATED, Kind.REORDERED}
    elif change == "insert":
        before = entries[at - 1] if at else None
        forged = chain(before, Act("client.create"), trail=TRAIL, time=1.0)
        lines.insert(at, forged.line())
        expected = {Kind.REPEATED}
    else:
        del lines[at:]
        expected = {Kind.TRUNCATED}
    assert kinds(lines, heads) & expected


@given(st.integers(0, 7), st.integers(0, 7))
def test_a_trail_written_anew_from_some_entry_on_is_found_by_a_head(at: int, signed: int) -> None:
    entries = numbered(8)
    heads = [head_of(entries[signed])] if signed >= at else [head_of(entries[7])]
    acts = [entry.entry.act for entry in entries]
    acts[at] = Act("nothing.happened")
    forged = lines_of(trail_of(acts))
    assert Kind.HEAD_DIFFERS in kinds(forged, heads)
    # With heads signed by whoever wrote it anew, the key is what tells.
    assert Kind.UNKNOWN_KEY in kinds(forged, [head_of(trail_of(acts)[-1], OTHER)])


def test_one_altered_entry_is_one_finding_that_names_it() -> None:
    entries = numbered(9)
    lines = lines_of(entries)
    lines[4] = lines[4].replace(b'"request_id":"4"', b'"request_id":"7"')
    report = verify(lines, [head_of(entries[-1])])
    assert [(f.kind, f.sequence) for f in report.findings] == [(Kind.ALTERED, 5)]
    # So is one whose stated hash was altered.
    lines = lines_of(entries)
    lines[4] = ChainedEntry(entries[4].entry, bytes(32)).line()
    report = verify(lines, [head_of(entries[-1])])
    assert [(f.kind, f.sequence) for f in report.findings] == [(Kind.ALTERED, 5)]


def test_a_trail_without_its_heads_is_not_signed() -> None:
    assert kinds(lines_of(numbered(3)), []) == {Kind.NOT_SIGNED}


def test_a_trail_and_its_heads_cut_together_are_found_by_a_head_kept_elsewhere() -> None:
    entries = numbered(9)
    lines, heads = lines_of(entries[:5]), [head_of(entries[4])]
    assert kinds(lines, heads) == set()
    kept = parse_head(head_of(entries[7]))
    assert kinds(lines, heads, kept=[kept]) == {Kind.TRUNCATED}


def test_a_head_that_was_moved_and_one_of_another_trail_are_found() -> None:
    entries = numbered(4)
    heads = [head_of(entries[3]), head_of(entries[1])]
    assert kinds(lines_of(entries), heads) == {Kind.HEAD_MOVED}
    foreign = head_of(trail_of([Act("x")], trail="auth")[0])
    heads = [foreign, head_of(entries[3])]
    assert kinds(lines_of(entries), heads, trail=TRAIL) == {Kind.FOREIGN}
    assert Kind.FOREIGN in kinds(
        [*lines_of(entries), *lines_of(trail_of([Act("x")], trail="auth"))], [head_of(entries[3])]
    )


def removed_up_to(last: ChainedEntry, action: str, first: int) -> Act:
    return Act(
        action,
        details={
            "first_sequence": first,
            "last_sequence": last.entry.sequence,
            "last_hash": last.hash.hex(),
        },
    )


def test_a_trail_whose_beginning_was_removed_by_its_age_is_intact_at_exactly_that_cut() -> None:
    entries = numbered(6)
    pruned = removed_up_to(entries[2], PRUNED, 1)
    entries.append(chain(entries[-1], pruned, trail=TRAIL, time=1.0))
    heads = [head_of(entries[2]), head_of(entries[-1])]
    report = verify(lines_of(entries[3:]), heads, public_keys=[SIGNER.public_key])
    assert report.intact, report.findings
    assert report.absent == [(1, 3)]
    for cut in (1, 2, 4, 5):
        assert kinds(lines_of(entries[cut:]), heads) == {Kind.START_MISSING}
    other = trail_of([Act("another")] * 3)
    assert Kind.HEAD_DIFFERS in kinds(lines_of(entries[3:]), [head_of(other[2]), *heads[1:]])


def test_the_first_entry_after_a_cut_must_follow_what_was_removed() -> None:
    entries = numbered(3)
    stranger = chain(trail_of([Act("another")] * 3)[2], Act("forged"), trail=TRAIL, time=1.0)
    pruned = chain(stranger, removed_up_to(entries[2], PRUNED, 1), trail=TRAIL, time=1.0)
    assert kinds(lines_of([stranger, pruned]), [head_of(pruned)]) == {Kind.ALTERED}


def test_what_one_copy_lacks_is_accounted_for_by_the_trail() -> None:
    entries = numbered(6)
    skipped = chain(entries[-1], removed_up_to(entries[3], SKIPPED, 3), trail=TRAIL, time=1.0)
    copy = [*entries[:2], *entries[4:], skipped]
    report = verify(lines_of(copy), [head_of(skipped)], public_keys=[SIGNER.public_key])
    assert report.intact, report.findings
    assert report.absent == [(3, 4)]
    assert kinds(lines_of([entries[0], *copy[2:]]), [head_of(skipped)]) == {Kind.MISSING}


def test_heads_are_signed_over_every_part() -> None:
    head = SIGNER.sign(numbered(2)[1], time=5.0)
    assert is_genuine(head)
    assert parse_head(head.line()) == head
    assert not is_genuine(parse_head(head.line().replace(b'"router"', b'"routex"')))
    parts = {head.signed_bytes()} | {
        SIGNER.sign(numbered(n)[-1], time=t).signed_bytes() for n in (1, 3) for t in (5.0, 6.0)
    }
    assert len(parts) == 5


def test_hashes_are_as_documented() -> None:
    """The form of the chain is a contract: trails of years ago must still be checked."""
    act = Act("client.create", "admin", "acme", "bot\n", True, "ipv4:1.2.3.4:5", {"b": 1, "a": "é"})
    first = chain(None, act, trail="auth", time=1_790_000_000.000001)
    assert first.entry.canonical() == (
        b'{"action":"client.create","client_id":"admin","details":{"a":"\\u00e9","b":1},'
        b'"peer":"ipv4:1.2.3.4:5","sequence":1,"succeeded":true,"target":"bot\\n",'
        b'"tenant":"acme","time_us":1790000000000001,"trail":"auth"}'
    )
    assert first.hash == first.entry.hash_after(GENESIS)
    assert chain(first, act, trail="auth", time=1.0).hash != first.hash
    with pytest.raises(ValueError, match="cannot follow"):
        chain(first, act, trail="other", time=1.0)


def test_what_is_too_long_is_cut_and_what_does_not_fit_is_counted() -> None:
    details: dict[str, str] = {f"n{n:02}": "\x1b" * 2000 for n in range(40)}
    details[CONTENT] = "A" * 100_000
    act = Act("a" * 1000, "c" * 1000, "t" * 1000, "\ud800" * 1000, True, "p" * 1000, details)
    entry = chain(None, act, trail=TRAIL, time=0.0)
    line = entry.line()
    assert len(line) < LONGEST_LINE
    assert parse_line(line).line() == line
    assert entry.entry.act.details[CONTENT] == details[CONTENT]
    assert entry.entry.act.details["omitted"] == 39
    too_long = chain(None, Act("x", details={CONTENT: "A" * 200_000}), trail=TRAIL, time=0.0)
    assert dict(too_long.entry.act.details) == {"omitted": 1}


def test_random_bytes_are_unreadable_and_raise_nothing() -> None:
    rng = random.Random(5)
    good = numbered(1)[0].line()
    for _ in range(2000):
        junk = bytearray(good)
        for _ in range(rng.randrange(1, 20)):
            junk[rng.randrange(len(junk))] = rng.randrange(256)
        assert kinds([bytes(junk)], [bytes(junk)])
    assert kinds([b"[" * 100_000, b"{}", b"null", b"1" * 5000, b"\xff"], []) == {Kind.UNREADABLE}


def without_the_middle(action: str, first: int) -> tuple[list[ChainedEntry], list[bytes]]:
    """A hundred entries with a head after every ten; some are removed, and an entry that nobody
    signed says that this is well."""
    entries = numbered(100)
    heads = [head_of(entry) for entry in entries[9::10]]
    forged = chain(entries[-1], removed_up_to(entries[59], action, first), trail=TRAIL, time=1.0)
    return [*entries[: first - 1], *entries[60:], forged], heads


@pytest.mark.parametrize(
    ("action", "first", "kind"),
    [(SKIPPED, 41, Kind.MISSING), (PRUNED, 1, Kind.START_MISSING)],
)
def test_a_gap_is_found_when_only_an_unsigned_entry_states_it(
    action: str, first: int, kind: Kind
) -> None:
    copy, heads = without_the_middle(action, first)
    assert kinds(lines_of(copy), heads) == {kind}
    # Under a head, it is the trail that says so.
    assert not kinds(lines_of(copy), [*heads, head_of(copy[-1])])
    stranger = head_of(copy[-1], OTHER)
    assert kinds(lines_of(copy), [*heads, stranger]) == {kind, Kind.UNKNOWN_KEY}


def test_a_head_behind_a_gap_does_not_vouch_for_what_is_stated_before_it() -> None:
    entries = numbered(60)
    forged = chain(entries[38], removed_up_to(entries[37], SKIPPED, 31), trail=TRAIL, time=1.0)
    skipped = chain(entries[-1], removed_up_to(entries[49], SKIPPED, 41), trail=TRAIL, time=1.0)
    copy = [*entries[:30], forged, *entries[50:], skipped]
    heads = [head_of(entries[29]), head_of(skipped)]
    assert kinds(lines_of(copy), heads) >= {Kind.MISSING}


@pytest.mark.parametrize(
    ("action", "first", "kind"),
    [(SKIPPED, 41, Kind.MISSING), (PRUNED, 1, Kind.START_MISSING)],
)
def test_what_a_process_found_unsigned_is_not_believed_for_its_later_heads(
    action: str, first: int, kind: Kind
) -> None:
    copy, heads = without_the_middle(action, first)
    copy.append(chain(copy[-1], Act(RECOVERED, succeeded=False), trail=TRAIL, time=2.0))
    assert kinds(lines_of(copy), [*heads, head_of(copy[-1])]) == {kind}
