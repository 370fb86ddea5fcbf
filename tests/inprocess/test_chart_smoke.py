"""The script of `helm test` against running services, in plain text and under mutual TLS."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.support import tls
from tests.support.inprocess import MODEL, Cluster, cluster
from tools import certs
from tools.chart.helm import CHART, ROOT

SCRIPT = CHART / "files/tests/smoke.py"


async def smoke(running: Cluster, secret: Path, **more: str) -> tuple[int, str]:
    """Exit status and output of the script, run as its pod runs it."""
    assert running.router is not None
    environ = {
        **{key: value for key, value in os.environ.items() if not key.startswith("ANABRANCH_")},
        "PYTHONPATH": str(ROOT),
        "ANABRANCH_TARGET": running.router.address,
        "ANABRANCH_AUTH_TARGET": running.auth.address,
        "ANABRANCH_CLIENT_ID": "tester",
        "ANABRANCH_CLIENT_SECRET_FILE": str(secret),
        **more,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SCRIPT),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_it_logs_in_asks_for_health_and_models_and_has_one_answer(tmp_path: Path) -> None:
    async with cluster(tmp_path) as running:
        secret = tmp_path / "tester"
        secret.write_text(await running.new_client("tester", "generate"))
        status, output = await smoke(running, secret, ANABRANCH_TEST_MODEL=MODEL)
    assert status == 0, output
    assert output.count("takes work") == 2
    assert f"models: {MODEL}" in output
    assert f"{MODEL} says: '[sim]" in output
    assert secret.read_text() not in output


async def test_it_does_the_same_under_mutual_tls(tmp_path: Path) -> None:
    made = tls.made(tmp_path / "certs")
    async with cluster(tmp_path, certificates=made) as running:
        secret = tmp_path / "tester"
        secret.write_text(await running.new_client("tester", "generate"))
        files = tls.files(made, certs.CLIENT)
        status, output = await smoke(
            running,
            secret,
            ANABRANCH_TLS_CA_FILE=str(files.ca),
            ANABRANCH_TLS_CERT_FILE=str(files.cert),
            ANABRANCH_TLS_KEY_FILE=str(files.key),
        )
    assert status == 0, output


@pytest.mark.parametrize("broken", ["secret", "engines"])
async def test_it_fails_with_the_step_that_failed(tmp_path: Path, broken: str) -> None:
    async with cluster(tmp_path, engines=() if broken == "engines" else ({},)) as running:
        secret = tmp_path / "tester"
        right = await running.new_client("tester", "generate")
        secret.write_text("x" * 47 if broken == "secret" else right)
        status, output = await smoke(running, secret, ANABRANCH_TEST_PATIENCE="0")
    assert status == 1
    assert "✗ a token, and the list of models:" in output
    assert ("no backend offers a model yet" in output) == (broken == "engines")
