"""`anabranch keychain`: a rotation from the first key to the last, and what it refuses."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from services.chassis.encryption.ciphers import CipherName
from services.chassis.encryption.command import keychain
from services.chassis.encryption.envelope import Envelope
from services.chassis.encryption.errors import EncryptionError
from services.chassis.encryption.keychain import Keychain


def run(*arguments: object) -> Result:
    return CliRunner().invoke(keychain, [str(argument) for argument in arguments])


def sealing(file: Path) -> Envelope:
    return Envelope(Keychain.read(file))


def test_a_rotation_keeps_what_was_sealed_until_its_key_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    assert run("new", file, "--id", "old").exit_code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    place = {"tenant": "shop", "field": "x"}
    sealed = sealing(file).seal(b"prompt", cipher=CipherName.AES_256_GCM, **place)
    assert run("add", file, "--id", "new", "--not-current").exit_code == 0
    assert json.loads(run("show", file, "--json").stdout) == {
        "current": "old",
        "keys": ["new", "old"],
    }
    assert run("use", file, "new").exit_code == 0
    rotated = sealing(file)
    assert rotated.open(sealed, **place) == b"prompt"
    moved = rotated.rewrap(sealed, **place)
    assert run("remove", file, "old", "--yes").exit_code == 0
    assert sealing(file).open(moved, **place) == b"prompt"
    with pytest.raises(EncryptionError):
        sealing(file).open(sealed, **place)


def test_no_key_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    said = run("new", file).output + run("add", file, "--id", "b").output + run("show", file).output
    for key in json.loads(file.read_text())["keys"].values():
        assert key not in said
    assert "seals and opens" in said


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("new",), 2, "is there already"),
        (("add", "--id", "a"), 4, "already holds a key"),
        (("use", "absent"), 4, "holds no key"),
        (("remove", "a", "--yes"), 4, "current key"),
        (("remove", "absent", "--yes"), 4, "holds no key"),
        (("add", "--id", "no spaces"), 4, "id must be"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], code: int, why: str
) -> None:
    file = tmp_path / "keys.json"
    run("new", file, "--id", "a")
    before = file.read_bytes()
    command, *rest = arguments
    result = run(command, file, *rest)
    assert result.exit_code == code
    assert why in result.output
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]


def test_removing_asks_first(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    run("new", file, "--id", "a")
    run("add", file, "--id", "b")
    before = file.read_bytes()
    assert CliRunner().invoke(keychain, ["remove", str(file), "a"], input="n\n").exit_code == 1
    assert file.read_bytes() == before


def test_a_file_that_is_no_keychain_is_named(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text("{}")
    result = run("show", file)
    assert result.exit_code == 4
    assert f"{file}: a keychain must have `current`" in result.output
    for command in (("show",), ("add",), ("use", "a")):
        absent = run(command[0], tmp_path / "absent", *command[1:])
        assert absent.exit_code == 2
        assert "cannot be read: No such file" in absent.output
