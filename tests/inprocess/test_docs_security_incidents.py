"""What docs/security.md says to do when something leaked does it: its shell blocks, on one service.

They run in a real shell, as printed, but for `make certs`, whose program is called itself.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from anabranch import api_keys
from tests.support.auth_administration import Service, real_service
from tests.support.waiting import BOUND_S

ROOT = Path(__file__).resolve().parents[2]
SECTION = (
    (ROOT / "docs/security.md")
    .read_text(encoding="utf-8")
    .partition("\n## When something leaked\n")[2]
    .partition("\n## ")[0]
)
EXAMPLE_KEY_ID = "4k9x0q2m7c1v8b5n"
# The command, whether its entry points are installed or not.
COMMAND = f"""#!{sys.executable}
from anabranch.cli import main
from services.chassis.audit.command import audit
main.add_command(audit)
main()
"""
BEFORE = f"""
anabranch auth roles set chat --scope generate --model '*'
anabranch auth clients create billing --tenant finance --role chat --secret-file old.secret
anabranch auth keys create --client billing --secret-file old.key
env -u ANABRANCH_CLIENT_SECRET ANABRANCH_CLIENT_ID=billing \\
    ANABRANCH_CLIENT_SECRET_FILE=old.secret anabranch auth token issue > token.txt
mkdir kept
anabranch auth audit export kept | tail -n 1 > kept/auth-audit.key
{sys.executable} -m tools.certs
"""

Shell = Callable[..., subprocess.CompletedProcess[str]]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with real_service(tmp_path / "auth") as found:
        yield found


@pytest.fixture
def shell(service: Service, tmp_path: Path) -> Shell:
    """Runs a script in a folder of its own, as the administrator unless `env` says otherwise."""
    here = tmp_path / "here"
    here.mkdir()
    program = tmp_path / "bin" / "anabranch"
    program.parent.mkdir()
    program.write_text(COMMAND)
    program.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ANABRANCH_")}

    def run(
        script: str, *, ends_with: int = 0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        path = f"{program.parent}:{os.environ['PATH']}"
        who = service.environment | (env or {})
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=here,
            env={**clean, **{k: v for k, v in who.items() if v}, "PATH": path}
            | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=BOUND_S,
        )
        assert done.returncode == ends_with, (script, done.stdout, done.stderr)
        return done

    return run


def test_every_command_for_an_incident_works_in_its_order(shell: Shell, tmp_path: Path) -> None:
    shell(BEFORE)
    key_id = api_keys.public_id((tmp_path / "here/old.key").read_text().strip())
    no_secret = {"ANABRANCH_CLIENT_ID": "", "ANABRANCH_CLIENT_SECRET": ""}
    with_key = {**no_secret, "ANABRANCH_TOKEN_FILE": "old.key"}
    with_secret = {
        "ANABRANCH_CLIENT_ID": "billing",
        "ANABRANCH_CLIENT_SECRET": "",
        "ANABRANCH_CLIENT_SECRET_FILE": "old.secret",
    }
    checks = {
        "keys revoke": ("anabranch auth token issue", with_key),
        "rotate-secret": ("anabranch auth token issue", with_secret),
    }
    for enters in (with_key, with_secret):
        shell("anabranch auth token issue", env=enters)
    found = blocks("sh")
    assert len(found) >= 8
    for block in found:
        block = block.replace(EXAMPLE_KEY_ID, key_id)
        shell(re.sub(r'^make certs CERTS="(.*)"$', rf"{sys.executable} -m tools.certs \1", block,
                     flags=re.MULTILINE))  # fmt: skip
        for name, (refused, env) in checks.items():
            if name in block:
                shell(refused, env=env, ends_with=3)
    assert '"active": false' in shell("anabranch auth token introspect --json token.txt").stdout
    clients = shell("anabranch auth clients list").stdout
    assert re.search(r"^billing .* disabled ", clients, re.MULTILINE)
    assert (tmp_path / "here/.run/both.pem").read_text().count("BEGIN CERTIFICATE") == 2


def test_a_stolen_signing_key_ends_its_tokens_and_another_one_signs(shell: Shell) -> None:
    shell("anabranch auth token issue > token.txt")
    before = json.loads(shell("anabranch auth jwks --json").stdout)["keys"]
    assert '"active": true' in shell("anabranch auth token introspect --json token.txt").stdout
    (block,) = [block for block in blocks("sh") if "--compromised" in block]
    shell(block)
    assert '"active": false' in shell("anabranch auth token introspect --json token.txt").stdout
    after = json.loads(shell("anabranch auth jwks --json").stdout)["keys"]
    assert {key["kid"] for key in after}.isdisjoint(key["kid"] for key in before)
    entries = json.loads(
        shell("anabranch auth audit query --action signing-key.replace --json").stdout
    )
    assert entries[0]["target"] == after[0]["kid"]
    shell("anabranch auth clients list")
