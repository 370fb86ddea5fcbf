"""`anabranch audit` on real files: what it shows, what it finds, and how it exits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.chassis.audit.audit_key import signing_key
from services.chassis.audit.command import audit
from services.chassis.audit.entry import Act, ChainedEntry, chain
from services.chassis.audit.file_sink import FileSink
from services.chassis.audit.head import Signer
from services.chassis.audit.segments import segments_of

BEGAN = 1_790_000_000.0  # 2026-09-21T14:13:20Z


def run(*arguments: object, fails_with: int = 0) -> Result:
    result = CliRunner().invoke(audit, [str(a) for a in arguments])
    assert result.exit_code == fails_with, (result.output, result.exception)
    return result


@pytest.fixture
async def directory(tmp_path: Path) -> Path:
    """Two trails of five entries each, signed with the key in audit.key."""
    place = tmp_path / "audit"
    signer = Signer(signing_key(place / "audit.key"))
    for name in ("router", "auth"):
        sink = FileSink.open(place, name)
        entries: list[ChainedEntry] = []
        for number in range(5):
            one = Act(
                ("backend.drain", "model.generate")[number % 2],
                client_id=f"client-{number % 2}",
                tenant="acme",
                target=f"{name}\x1b[2J{number}",
                succeeded=number != 3,
                details={"n": number},
            )
            last = entries[-1] if entries else None
            entries.append(chain(last, one, trail=name, time=BEGAN + number * 3600))
        await sink.append(entries, signer.sign(entries[-1], time=BEGAN))
        await sink.close()
    return place


def tamper(directory: Path, old: bytes, new: bytes) -> None:
    path = segments_of(directory, "router")[0].path
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def test_an_intact_directory_is_said_to_be_intact(directory: Path) -> None:
    result = run("verify", directory, "--public-key", directory / "audit.key.pub")
    assert result.stdout.count("intact") == 2
    assert "prove nothing" not in result.stderr
    assert "prove nothing" in run("verify", directory).stderr
    reports = json.loads(run("verify", directory, "--json").stdout)
    assert [(r["trail"], r["intact"], r["signed"]) for r in reports] == [
        *(("auth", True, 5), ("router", True, 5)),
    ]


def test_tampering_is_named_by_its_entry_and_exits_with_4(directory: Path) -> None:
    tamper(directory, b'"n":2', b'"n":9')
    result = run("verify", directory, fails_with=4)
    assert "router 3: altered: its hash is not that of what it says" in result.stdout
    assert "router" not in run("verify", directory, "--trail", "auth").stdout
    (_, report) = json.loads(run("verify", directory, "--json", fails_with=4).stdout)
    assert [(f["kind"], f["sequence"]) for f in report["findings"]] == [("altered", 3)]


def test_a_file_that_was_removed_is_missed(directory: Path) -> None:
    segments_of(directory, "router")[0].path.unlink()
    assert "truncated" in run("verify", directory, fails_with=4).stdout


def test_another_key_than_the_pinned_one_is_found(directory: Path) -> None:
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    result = run("verify", directory, "--public-key", other, fails_with=4)
    assert "unknown key" in result.stdout
    missing = run("verify", directory, "--public-key", "nowhere.pub", fails_with=2)
    assert "No such file" in missing.stderr
    no_key = directory / "router.heads.jsonl"
    assert "does not hold" in run("verify", directory, "--public-key", no_key, fails_with=2).stderr


def test_a_head_that_was_kept_shows_what_was_cut_off_with_the_heads(
    directory: Path, tmp_path: Path
) -> None:
    heads = directory / "router.heads.jsonl"
    kept = tmp_path / "kept.jsonl"
    kept.write_bytes(heads.read_bytes())
    segment = segments_of(directory, "router")[0].path
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join(lines[:3]))
    heads.write_bytes(b"")
    assert "not signed" in run("verify", directory, fails_with=4).stdout
    result = run("verify", directory, "--head", kept, fails_with=4)
    assert "router 3: truncated: the trail ends here, but was signed up to 5" in result.stdout
    segment.unlink()
    heads.unlink()
    assert "truncated" in run("verify", directory, "--head", kept, fails_with=4).stdout
    assert "does not hold" in run("verify", directory, "--head", __file__, fails_with=2).stderr


def test_one_file_is_verified_with_the_heads_beside_it(directory: Path, tmp_path: Path) -> None:
    segment = segments_of(directory, "router")[0].path
    assert "intact" in run("verify", segment).stdout
    export = tmp_path / "export.jsonl"
    export.write_bytes(segment.read_bytes())
    assert "not signed" in run("verify", export, fails_with=4).stdout
    (tmp_path / "export.heads.jsonl").write_bytes((directory / "router.heads.jsonl").read_bytes())
    assert "intact" in run("verify", export).stdout


def test_a_directory_without_a_trail_is_no_good_news(tmp_path: Path) -> None:
    assert "There is no audit trail." in run("verify", tmp_path, fails_with=4).stdout
    assert "There is no such entry." in run("show", tmp_path).stdout


def test_entries_are_shown_by_time_and_steer_no_terminal(directory: Path) -> None:
    result = run("show", directory)
    lines = result.stdout.splitlines()
    assert len(lines) == 11
    assert lines[1].split()[0] == "2026-09-21"
    assert [line.split()[1] for line in lines[1:]] == sorted(line.split()[1] for line in lines[1:])
    assert "\x1b" not in result.stdout
    assert sum(" no " in line for line in lines) == 2


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["--client", "client-1"], 4),
        (["--action", "model.generate"], 4),
        (["--action", "backend."], 6),
        (["--tenant", "other"], 0),
        (["--trail", "auth"], 5),
        (["--since", "2026-09-21T15:13:20Z", "--until", "2026-09-21T16:13:20"], 4),
    ],
)
def test_entries_are_chosen(directory: Path, options: list[str], count: int) -> None:
    shown = run("show", directory, "--json", *options).stdout.splitlines()
    assert len(shown) == count
    for line in shown:
        assert set(json.loads(line)) == {"entry", "hash"}


def test_a_time_that_is_none_is_refused(directory: Path) -> None:
    assert "is no time" in run("show", directory, "--since", "yesterday", fails_with=2).stderr
    assert run("show", directory, "--since", "2h", "--json").exit_code == 0


def test_help_has_examples() -> None:
    for command in ((), ("verify",), ("show",)):
        assert "Examples:" in run(*command, "--help").stdout
