"""What the README tells a newcomer to type works, against a running cluster.

grpcurl itself is not installable here: buf's curl, which also learns the
contracts through reflection, stands in for it. The Python examples run as printed.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2

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


# `list` and `describe` are spelt differently; everything else only needs its words reordered.
_AS_BUF = r"""
grpcurl() {
  local options=() data='{}' address=
  while [ $# -gt 0 ]; do
    case "$1" in
      -plaintext) ;;
      -d) data=$2; shift ;;
      -H) options+=(-H "$2"); shift ;;
      list) buf curl --protocol grpc --http2-prior-knowledge --list-services "http://$address"
            return ;;
      */*) buf curl --protocol grpc --http2-prior-knowledge "${options[@]}" -d "$data" \
             "http://$address/$1"; return ;;
      *) address=$1 ;;
    esac
    shift
  done
}
"""


async def test_the_grpcurl_calls_work_through_reflection(cluster):
    calls = [call for call in grpcurl_calls() if " describe " not in call]
    assert len(calls) == 4
    listed, issue, stream, models = calls
    out = await shell(_AS_BUF + here(listed, cluster), cluster)
    assert "anabranch.v1.ModelService" in out.split()
    out = await shell(_AS_BUF + here(f"{issue}\n{stream}", cluster), cluster)
    chunks = json.loads("[" + out.strip().replace("}\n{", "},{") + "]")
    assert chunks[-1]["finishReason"] in ("FINISH_REASON_STOP", "FINISH_REASON_LENGTH")
    assert chunks[-1]["receipt"]["tier"] == "TIER_LOCAL"
    out = await shell(_AS_BUF + here(f"{issue}\n{models}", cluster), cluster)
    assert [m["name"] for m in json.loads(out)["models"]] == [MODEL]


async def test_describe_shows_the_comments_of_the_contract(cluster):
    described = next(call for call in grpcurl_calls() if " describe " in call).split()[-1]
    async with grpc.aio.insecure_channel(cluster.router) as channel:
        call = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )()
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=described))
        answer = await call.read()
        call.cancel()
    files = [
        FileDescriptorProto.FromString(raw)
        for raw in answer.file_descriptor_response.file_descriptor_proto
    ]
    comments = [
        location.leading_comments for file in files for location in file.source_code_info.location
    ]
    assert any("Never retry after the first chunk" in comment for comment in comments)


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
