"""The audit trail of the auth service's database, copied and verified: what was done to it shows.

Whoever tampers here can write the database, as an intruder or an administrator of it could.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from anabranch.cli import main
from services.chassis.audit.command import audit
from tests.support.auth_administration import Service, real_service

DATA = "data"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with real_service(tmp_path / DATA) as found:
        yield found


@pytest.fixture
def export(service: Service, tmp_path: Path) -> Callable[[], Path]:
    """Copies the trail; may be called again."""

    def export() -> Path:
        clean = {name: None for name in os.environ if name.startswith("ANABRANCH_")}
        arguments = ["auth", "audit", "export", str(tmp_path / "copy")]
        done = CliRunner().invoke(main, arguments, env={**clean, **service.environment})
        assert done.exit_code == 0, done.output
        return tmp_path / "copy"

    return export


def verify(directory: Path) -> Result:
    return CliRunner().invoke(audit, ["verify", str(directory)])


def change(tmp_path: Path, statement: str) -> None:
    """What somebody with the database's file does to it."""
    with closing(sqlite3.connect(tmp_path / DATA / "auth.db", timeout=30)) as connection:
        assert connection.execute(statement).rowcount > 0
        connection.commit()


def entries(service: Service, count: int) -> None:
    """So many acts, each an entry."""
    clean = {name: None for name in os.environ if name.startswith("ANABRANCH_")}
    for number in range(count):
        command = ["auth", "roles", "set", f"role-{number}", "--scope", "generate"]
        done = CliRunner().invoke(main, command, env={**clean, **service.environment})
        assert done.exit_code == 0, done.output


def test_a_trail_as_it_was_written_is_intact(service: Service, export: Callable[[], Path]) -> None:
    entries(service, 3)
    copy = export()
    found = verify(copy)
    assert found.exit_code == 0, found.output
    text = (copy / "auth-00000000000000000001.jsonl").read_text()
    assert text.count('"role.set"') == 3
    assert service.client_secret not in text


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        (
            "UPDATE audit_entries SET entry = replace(entry, 'role-1', 'role-9') "
            "WHERE entry LIKE '%role-1%'",
            "altered",
        ),
        ("DELETE FROM audit_entries WHERE entry LIKE '%role-1%'", "missing"),
        ("UPDATE audit_entries SET entry = 'nothing' WHERE entry LIKE '%role-1%'", "unreadable"),
        ("UPDATE audit_entries SET hash = zeroblob(32) WHERE entry LIKE '%role-1%'", "altered"),
    ],
)
def test_what_was_changed_in_the_database_is_found(
    service: Service, tmp_path: Path, export: Callable[[], Path], statement: str, kind: str
) -> None:
    entries(service, 3)
    change(tmp_path, statement)
    found = verify(export())
    assert found.exit_code == 4
    assert kind in found.output


def test_a_trail_that_was_cut_is_found_with_the_head_of_an_earlier_copy(
    service: Service, tmp_path: Path, export: Callable[[], Path]
) -> None:
    entries(service, 3)
    assert verify(export()).exit_code == 0
    change(tmp_path, "DELETE FROM audit_entries WHERE sequence > 3")
    found = verify(export())
    assert found.exit_code == 4
    assert "truncated" in found.output or "head differs" in found.output
