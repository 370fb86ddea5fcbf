"""What `make compose-env` writes: the example with secrets, for its owner alone, once."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.compose import ROOT
from tools import compose_env

EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")


def variables(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


@pytest.fixture
def out(tmp_path, monkeypatch):
    for name in compose_env.TAKEN_OVER:
        monkeypatch.delenv(name, raising=False)
    return tmp_path / ".env"


def test_each_secret_is_new_and_everything_else_is_the_examples(out, tmp_path):
    assert compose_env.main(["--out", str(out)]) == 0
    assert compose_env.main(["--out", str(tmp_path / "other")]) == 0
    first, second = variables(out.read_text()), variables((tmp_path / "other").read_text())
    for name in compose_env.SECRETS:
        assert re.fullmatch("[0-9a-f]{64}", first[name])
        assert first[name] != second[name]
    assert len({first[name] for name in compose_env.SECRETS}) == len(compose_env.SECRETS)
    example = variables(EXAMPLE)
    assert {k: v for k, v in first.items() if k not in compose_env.SECRETS} == {
        k: v for k, v in example.items() if k not in compose_env.SECRETS
    }
    assert re.findall("^#.*", out.read_text(), re.M) == re.findall("^#.*", EXAMPLE, re.M)


def test_the_file_is_its_owners_alone(out):
    compose_env.main(["--out", str(out)])
    assert out.stat().st_mode & 0o777 == 0o600


def test_one_that_is_there_stays_as_it_is(out, capsys):
    out.write_text("mine\n")
    assert compose_env.main(["--out", str(out)]) == 1
    assert out.read_text() == "mine\n"
    assert "docker compose down --volumes" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named(tmp_path, capsys):
    assert compose_env.main(["--out", str(tmp_path / "missing/.env")]) == 1
    assert "missing/.env cannot be written" in capsys.readouterr().err


def test_it_says_that_the_cpu_engine_needs_pytorchs_index(out, tmp_path, capsys, monkeypatch):
    compose_env.main(["--out", str(out)])
    assert "set PIP_EXTRA_INDEX_URL" in capsys.readouterr().out
    compose_env.main(["--out", str(tmp_path / "gpu"), "--profile", "gpu"])
    assert "PIP_EXTRA_INDEX_URL" not in capsys.readouterr().out
    assert variables((tmp_path / "gpu").read_text())["COMPOSE_PROFILES"] == "gpu"
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://packages.example/cpu")
    compose_env.main(["--out", str(tmp_path / "third")])
    assert "PIP_EXTRA_INDEX_URL" not in capsys.readouterr().out
    written = variables((tmp_path / "third").read_text())
    assert written["PIP_EXTRA_INDEX_URL"] == "https://packages.example/cpu"


def test_secrets_are_not_shown(out, capsys):
    compose_env.main(["--out", str(out)])
    shown = capsys.readouterr().out
    assert not any(variables(out.read_text())[name] in shown for name in compose_env.SECRETS)


def test_it_needs_nothing_but_python(out):
    # -I and -S: neither this repository nor installed packages can be imported.
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "tools/compose_env.py"), "--out", str(out)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_value_for_a_variable_that_the_example_lacks_is_refused():
    with pytest.raises(KeyError, match="TYPO"):
        compose_env.filled(EXAMPLE, {"TYPO": "1"})
