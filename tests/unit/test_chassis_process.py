"""What a process that cannot start says, and the code that it ends with."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def start(listen: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.local_engine"],
        env={
            "ANABRANCH_ENGINE_ENGINE": "sim",
            "ANABRANCH_ENGINE_LISTEN": listen,
            "ANABRANCH_ENGINE_HTTP_LISTEN": "127.0.0.1:0",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_a_setting_that_is_found_bad_only_at_the_start_is_named_as_such():
    ended = start("0.0.0.0:0", ANABRANCH_ENGINE_REGISTRY="consul://127.0.0.1:1")
    assert ended.returncode == 2
    assert "ADVERTISE is required" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_port_in_use_is_said_in_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = start(f"127.0.0.1:{taken.getsockname()[1]}")
    assert ended.returncode == 1
    said = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    (cause,) = [line["cause"] for line in said if line["message"] == "cannot run"]
    assert "is the port in use?" in cause


def check_policy(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.router", "--check-policy", str(path)],
        env={},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_a_policy_file_is_checked_without_settings(tmp_path: Path):
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\n")
    good = check_policy(path)
    assert (good.returncode, good.stdout, good.stderr) == (0, f"{path}: the policy is good\n", "")
    path.write_text("version: 1\nslow_start: x\nfoo: 1\n")
    bad = check_policy(path)
    assert (bad.returncode, bad.stdout) == (2, "")
    first, second = bad.stderr.splitlines()
    assert first.startswith(f"{path}: slow_start: must be a duration")
    assert second.startswith(f"{path}: foo: is not known")
    missing = check_policy(tmp_path / "nothing")
    assert missing.returncode == 2
    assert missing.stderr == f"{tmp_path}/nothing: cannot be read: No such file or directory\n"
