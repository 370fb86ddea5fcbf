"""The first identities' files: what `--copy` copies and what never; no auth service runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import identities

NOBODY = "127.0.0.1:1"


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A directory as a first run leaves it."""
    directory = tmp_path / "secrets"
    for name in ("admin", "router", "demo"):
        identities.write_private(directory / name, f"abs_of_{name}\n")
    return directory


def run(secrets: Path, *more: str) -> int:
    return identities.main(["--auth", NOBODY, "--secrets", str(secrets), *more])


def test_a_copy_is_one_identitys_secret_alone_and_private(secrets, tmp_path):
    there = tmp_path / "router"
    assert run(secrets, f"--copy=router={there}", f"--copy=demo={tmp_path / 'demo'}") == 0
    assert [file.name for file in there.iterdir()] == ["router"]
    assert (there / "router").read_text() == "abs_of_router\n"
    assert (there / "router").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "demo/demo").read_text() == "abs_of_demo\n"


def test_a_second_run_leaves_the_copy_as_it_is(secrets, tmp_path):
    arguments = f"--copy=router={tmp_path / 'router'}"
    assert run(secrets, arguments) == 0
    first = (tmp_path / "router/router").stat()
    assert run(secrets, arguments) == 0
    second = (tmp_path / "router/router").stat()
    assert (first.st_ino, first.st_mtime_ns) == (second.st_ino, second.st_mtime_ns)


@pytest.mark.parametrize("spoilt", ["text", "mode"])
def test_a_copy_that_is_old_or_open_is_made_anew(secrets, tmp_path, spoilt):
    copy = tmp_path / "router/router"
    identities.write_private(copy, "old\n" if spoilt == "text" else "abs_of_router\n")
    if spoilt == "mode":
        copy.chmod(0o644)
    assert run(secrets, f"--copy=router={copy.parent}") == 0
    assert copy.read_text() == "abs_of_router\n"
    assert copy.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("wrong", ["admin=/tmp/there", "../admin=/tmp/there", "router", "router="])
def test_the_administrators_secret_and_what_is_no_identity_are_not_copied(
    secrets, tmp_path, wrong, capsys
):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        run(secrets, f"--copy={wrong}")
    assert ended.value.code == 2
    assert "NAME=DIRECTORY" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_be_written_is_said_without_the_secret(secrets, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(secrets, f"--copy=router={tmp_path / 'file'}") == 1
    said = capsys.readouterr().err
    assert said.startswith("identities: ")
    assert "abs_of" not in said
