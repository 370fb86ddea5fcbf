"""What the README tells a newcomer to type works, against a running cluster.

tests/support/grpcurl.py stands in for grpcurl. The Python examples run as printed.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support import grpcurl
from tools.cluster import Cluster, EngineKind, EngineSpec

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
MODEL = "smollm2-135m-instruct"

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    # The model's name is the README's; that the answer is right is shown with the real one.
    engine = EngineSpec("engine-1", EngineKind.SIM, MODEL)
    async with Cluster(tmp_path_factory.mktemp("readme"), engines=(engine,)) as running:
        yield running


def here(text: str, cluster: Cluster) -> str:
    """The README's text with this cluster's addresses and files."""
    return (
        text.replace("127.0.0.1:50051", cluster.router)
        .replace("127.0.0.1:50052", f"127.0.0.1:{cluster.ports.engine[0]}")
        .replace("127.0.0.1:50054", cluster.auth)
        .replace(".run/cluster", str(cluster.run_dir))
    )


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def grpcurl_calls() -> list[str]:
    """The README's grpcurl commands, each on one line."""
    text = next(b for b in blocks("sh") if "grpcurl" in b).replace("\\\n", " ")
    return [line for line in text.splitlines() if "grpcurl" in line]


async def shell(script: str, cluster: Cluster) -> str:
    """Runs a script with bash; its output. Fails the test unless it succeeds."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def test_the_grpcurl_calls_work_through_reflection(cluster):
    calls = grpcurl_calls()
    assert len(calls) == 5
    listed, described, issue, stream, models = (here(call, cluster) for call in calls)
    out = await shell(grpcurl.shell_function() + listed, cluster)
    assert "anabranch.v1.ModelService" in out.split()
    out = await shell(grpcurl.shell_function() + described, cluster)
    assert "Never retry after the first chunk" in out
    assert "returns ( stream .anabranch.v1.GenerateChunk )" in out
    out = await shell(f"{grpcurl.shell_function()}{issue}\n{stream}", cluster)
    chunks = json.loads("[" + out.strip().replace("}\n{", "},{") + "]")
    assert chunks[-1]["finishReason"] in ("FINISH_REASON_STOP", "FINISH_REASON_LENGTH")
    assert chunks[-1]["receipt"]["tier"] == "TIER_LOCAL"
    out = await shell(f"{grpcurl.shell_function()}{issue}\n{models}", cluster)
    assert [m["name"] for m in json.loads(out)["models"]] == [MODEL]


@pytest.mark.parametrize("number", [0, 1], ids=["the library", "the stubs"])
async def test_the_python_examples_run_as_printed(cluster, number):
    example = here(blocks("python")[number], cluster)
    script = f"source {cluster.run_dir}/env\npython - <<'EOF'\n{example}\nEOF"
    out = await shell(script, cluster)
    assert "[sim]" in out


async def test_the_command_line_examples_run_as_printed(cluster):
    text = "\n".join(b for b in blocks("sh") if ".venv/bin/anabranch" in b)
    script = here(text, cluster).replace(".venv/bin/anabranch", "python -m anabranch.cli")
    out = await shell(f"source {cluster.run_dir}/env\n{script}", cluster)
    for expected in ("[sim]", MODEL, "engine-1", "dispatch"):
        assert expected in out
