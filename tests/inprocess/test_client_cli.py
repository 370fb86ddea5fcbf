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
    assert result.stderr == "local scripted · first token 5 ms · 3 + 3 tokens · stop\n"
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
