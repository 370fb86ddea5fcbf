"""The `anabranch` command against a real server in another process."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from anabranch.cli import main
from tests.support.session_server import server_process
from tests.support.waiting import BOUND_S


@pytest.fixture(scope="module")
def remote() -> Iterator[str]:
    with server_process() as (address, _):
        yield address


def run(remote: str, *arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> Result:
    clean = {name: None for name in os.environ if name.startswith("ANABRANCH_")}
    return CliRunner().invoke(
        main, ["--target", remote, *arguments], input=stdin, env={**clean, **(env or {})}
    )


def test_generate_streams_the_answer_to_stdout_and_the_receipt_to_stderr(remote: str) -> None:
    result = run(remote, "generate", "say 3", "--raw", "-m", "m")
    assert result.exit_code == 0
    assert result.stdout == "w0 w1 w2 \n"
    used, _, request_id = result.stderr.rpartition(" · request ")
    assert used == "local scripted · first token 5 ms · 3 + 3 tokens · stop"
    assert re.fullmatch(r"req-[0-9a-f]{32}\n", request_id)
    quiet = run(remote, "generate", "say 3", "--raw", "-m", "m", "--no-receipt")
    assert quiet.stderr == ""


def test_generate_reads_a_piped_prompt_and_prints_json(remote: str) -> None:
    result = run(remote, "generate", "--raw", "-m", "m", "--json", stdin="say 2")
    said = json.loads(result.stdout)
    assert said["choices"][0]["text"] == "w0 w1 "
    assert said["choices"][0]["finish_reason"] == "stop"
    assert said["usage"]["completion_tokens"] == 2
    assert said["receipt"]["tier"] == "local"


def test_a_model_must_be_named_where_there_is_a_choice(remote: str) -> None:
    result = run(remote, "generate", "say 2")
    assert result.exit_code == 2
    assert "name a model with --model: model-0, model-1" in result.stderr


@pytest.mark.parametrize(
    ("command", "column", "row"),
    [
        (["models"], "MODEL", "model-4"),
        (["backends"], "BACKEND", "engine-1"),
        (["drain", "engine-1"], "STATE", "ready (drained)"),
        (["undrain", "engine-1"], "STATE", "ready "),
        (["explain", "hello", "-m", "m"], "CANDIDATE", "engine-1"),
    ],
)
def test_tables_for_people_and_json_for_programs(
    remote: str, command: list[str], column: str, row: str
) -> None:
    table = run(remote, *command)
    assert table.exit_code == 0
    assert column in table.stdout
    assert row in table.stdout
    assert json.loads(run(remote, *command, "--json").stdout)


def test_a_policy_is_shown_as_it_was_written_with_what_is_wrong_with_a_newer_one(
    remote: str,
) -> None:
    shown = run(remote, "policy", "show")
    assert shown.exit_code == 0
    assert shown.stdout == "version: 1 # as it was written\n"
    assert shown.stderr.splitlines() == [
        "version v1 · from file",
        "file p.yaml was refused:",
        "slow_start: must be a duration",
    ]
    as_json = json.loads(run(remote, "policy", "show", "--json").stdout)
    assert as_json == {
        "text": "version: 1 # as it was written\n",
        "version": "v1",
        "source": "file",
        "rejected": ["file p.yaml was refused:", "slow_start: must be a duration"],
    }


def test_a_policy_is_updated_whole_or_not_at_all(remote: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("version: 1\n")
    good = run(remote, "policy", "update", str(file), "--expected-version", "v1")
    assert (good.exit_code, good.stdout) == (0, "in force: version v2\n")
    piped = run(remote, "policy", "update", "-", "--json", stdin="version: 1\n")
    assert json.loads(piped.stdout) == {"version": "v2"}
    late = run(remote, "policy", "update", str(file), "--expected-version", "v0")
    assert late.exit_code == 4
    assert "[VERSION_MISMATCH]" in late.stderr
    assert "change that" in late.stderr
    file.write_text("bad: 1\n")
    bad = run(remote, "policy", "update", str(file))
    assert bad.exit_code == 4
    assert bad.stderr.splitlines() == [
        "models.a: must be good",
        "models.b: must be good",
        "Nothing changed: a policy is put in force whole or not at all.",
    ]
    as_json = json.loads(run(remote, "policy", "update", str(file), "--json").stderr)
    assert [v["field"] for v in as_json["error"]["violations"]] == ["models.a", "models.b"]
    file.write_bytes(b"\xff\xfe")
    assert run(remote, "policy", "update", str(file)).exit_code == 2


def test_an_edited_policy_is_put_in_force_and_never_lost(remote: str, tmp_path: Path) -> None:
    def edit(line: str) -> Result:
        editor = tmp_path / "editor"
        editor.write_text(f'#!/bin/sh\nprintf "{line}" >> "$1"\n')
        editor.chmod(0o755)
        return run(remote, "policy", "edit", env={"EDITOR": str(editor), "VISUAL": str(editor)})

    assert edit("slow_start: 3s\\n").stdout == "in force: version v2\n"
    unchanged = edit("")
    assert (unchanged.exit_code, unchanged.stderr) == (0, "Nothing changed.\n")
    bad = edit("bad: 1\\n")
    assert bad.exit_code == 4
    assert "models.a: must be good" in bad.stderr
    assert bad.stdout == "version: 1 # as it was written\nbad: 1\n"


def test_count(remote: str) -> None:
    assert run(remote, "count", "--raw", "-m", "m", "a b c").stdout == "3 of 99 tokens\n"
    counted = json.loads(run(remote, "count", "--raw", "-m", "m", "a b", "--json").stdout)
    assert counted == {"prompt_tokens": 2, "context_length": 99, "source": "provider"}


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("OVERLOADED", 5),
        ("QUOTA_EXCEEDED", 4),
        ("INVALID_REQUEST", 4),
        ("ACCESS_DENIED", 3),
        ("INTERNAL", 1),
    ],
)
def test_errors_are_readable_and_have_their_exit_code(remote: str, reason: str, code: int) -> None:
    result = run(remote, "generate", f"refuse {reason}", "--raw", "-m", "m")
    assert result.exit_code == code
    first, advice = result.stderr.splitlines()
    assert first == f"error: refused: {reason} [{reason}]"
    assert advice.startswith("  ")
    as_json = run(remote, "generate", f"refuse {reason}", "--raw", "-m", "m", "--json")
    assert json.loads(as_json.stderr)["error"]["reason"] == reason


def test_a_lost_answer_keeps_what_came_and_says_so(remote: str) -> None:
    result = run(remote, "generate", "die 4", "--raw", "-m", "m")
    assert result.exit_code == 5
    assert result.stdout == "w0 w1 w2 w3 "
    assert "4 tokens had arrived" in result.stderr


def test_an_unreachable_router_is_named(remote: str) -> None:
    result = run("127.0.0.1:1", "models")
    assert result.exit_code == 5
    assert "cannot reach 127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.output


def test_credentials_come_from_the_environment_and_files(remote: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("right\n")
    identity = {"ANABRANCH_AUTH_TARGET": remote, "ANABRANCH_CLIENT_ID": "me"}
    good = run(remote, "models", env={**identity, "ANABRANCH_CLIENT_SECRET_FILE": str(secret)})
    assert good.exit_code == 0
    bad = run(remote, "models", env={**identity, "ANABRANCH_CLIENT_SECRET": "wr0ng"})
    assert bad.exit_code == 3
    assert "wr0ng" not in bad.output
    assert run(remote, "models", env=identity).exit_code == 2


def test_chat_remembers_resets_and_ends(remote: str) -> None:
    result = run(
        remote, "chat", "-m", "m", stdin="say 2\n\n/help\n/reset\nrefuse OVERLOADED\n/quit\nsay 9\n"
    )
    assert result.exit_code == 0
    assert result.stdout.count("w1") == 1
    assert "w8" not in result.stdout
    assert "refused: OVERLOADED" in result.stderr, "an error ends the answer, not the chat"
    assert "Forgotten." in result.stderr


def test_ctrl_c_cancels_and_exits_130(remote: str) -> None:
    command = [sys.executable, "-m", "anabranch.cli", "--target", remote]
    command += ["generate", "--raw", "-m", "m", "say 100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(3) == b"w0 "
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=BOUND_S)
    assert process.returncode == 130
    assert stderr.decode().splitlines()[-1] == "interrupted"


def test_on_a_terminal_chat_streams_and_ctrl_c_stops_only_the_answer(remote: str) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(
            sys.executable,
            [sys.executable, "-m", "anabranch.cli", "--target", remote, "chat", "-m", "m"],
        )
    seen = b""

    def until(pattern: bytes) -> None:
        nonlocal seen
        end = time.monotonic() + BOUND_S
        while not re.search(pattern, seen):
            assert time.monotonic() < end, seen
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 4096)

    try:
        until(rb"> ")
        os.write(terminal, b"silent\n")
        until(rb"waiting for the first token")
        os.write(terminal, b"\x03")
        until(rb"stopped[\s\S]*> ")
        os.write(terminal, b"/quit\n")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        os.close(terminal)
