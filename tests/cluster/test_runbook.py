"""What the runbook tells an operator to type works, and prints what the runbook says.

Every block runs in the page's order in one shell, against one cluster of real processes;
so do the command lines beside them. tests/support/grpcurl.py stands in for grpcurl. A block that
needs Kubernetes is given to the real kubectl, which reads it and finds no cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from click.testing import CliRunner

from anabranch.cli import main
from anabranch.v1 import generation_pb2, model_pb2_grpc
from tests.support import grpcurl
from tests.support.runbook import Command, commands, difference, inline
from tests.support.waiting import BOUND_S, until
from tests.support.weights import write_adapter
from tools.cluster import Cluster, EngineKind, EngineSpec
from tools.cluster.recipes import at

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
MODEL = "smollm2-135m-instruct"
COMMANDS = commands(PAGE)
HERE = [command for command in COMMANDS if not command.where]

NOT_RUN = {"the-administrators-secret-2"}
"""Blocks for Compose, which needs a Docker engine; the file that it reads is checked elsewhere."""

INLINE = inline(PAGE)
RUN = {"curl", "date", "grep", "python"}
INLINE_NOT_RUN = {
    "dmesg": "reads the kernel's log, which is not everybody's",
    "docker": "needs a Docker engine",
    "make": "starts and looks at the cluster of the documented ports",
    "nc": "says no more than a call does, and is not everywhere",
    "nvidia-smi": "needs a GPU",
    "openssl": "needs a port with TLS; what it is to explain is test_runbook_connections.py's",
}
"""Programs of commands within sentences that are not run, and why."""

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
]
in_one_loop = pytest.mark.asyncio(loop_scope="module")


class Operator:
    """Works through the page, each block once and after all before it."""

    def __init__(self, cluster: Cluster, folder: Path, shell: asyncio.subprocess.Process) -> None:
        self.cluster = cluster
        self._folder = folder
        self._shell = shell
        self._done = 0
        self._outcomes: dict[str, str] = {}
        self._sections: set[str] = set()

    async def outcome(self, wanted: Command) -> str:
        """What was wrong with the block, having done all before it; empty when nothing was."""
        while wanted.name not in self._outcomes:
            command = HERE[self._done]
            self._done += 1
            self._outcomes[command.name] = await self._follow(command)
        return self._outcomes[wanted.name]

    async def try_out(self, line: str) -> tuple[int, str]:
        """Runs a command of a sentence, after all blocks."""
        await self.outcome(HERE[-1])
        line = self._here(line).replace("HOST:PORT", self.cluster.router)
        return await self._run(line)

    async def _follow(self, command: Command) -> str:
        if command.section not in self._sections:
            self._sections.add(command.section)
            if command.section in BEFORE:
                await BEFORE[command.section](self.cluster)
        failed, printed = await self._run(self._here(command.script))
        expects_failure = "ERROR:" in command.expected
        if bool(failed) != expects_failure:
            return f"exit status {failed}:\n{printed}"
        if wrong := difference(self._in_here(command), printed):
            return wrong
        for line in command.command_lines:
            if wrong := await self._command_line(line):
                return wrong
        return ""

    def _here(self, text: str) -> str:
        """The page's text with this cluster's addresses and files."""
        ports = self.cluster.ports
        pairs = {"router": (50051, 9101), "engine": (50052, 9102), "cloud": (50053, 9103)}
        own = {"8500": ports.consul}
        for name, documented in (pairs | {"auth": (50054, 9104)}).items():
            own |= dict(zip(map(str, documented), getattr(ports, name), strict=True))
        text = re.sub(rf"127\.0\.0\.1:({'|'.join(own)})\b", lambda found: at(own[found[1]]), text)
        return text.replace(".run/cluster", str(self.cluster.run_dir))

    def _in_here(self, command: Command) -> Command:
        expected = self._here(command.expected)
        return Command(command.section, command.number, "", "", expected, command.form)

    async def _run(self, script: str) -> tuple[int, str]:
        """The status of the last command that failed, or 0, and all that was printed."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(
            f"failed=0\n{{\n{script}\n}} 2>&1 </dev/null\nprintf '\\n%s\\0' $failed\n".encode()
        )
        await self._shell.stdin.drain()
        async with asyncio.timeout(BOUND_S):
            answer = (await self._shell.stdout.readuntil(b"\0"))[:-1].decode()
        printed, _, failed = answer.rpartition("\n")
        return int(failed), printed

    async def _command_line(self, line: str) -> str:
        """What is wrong with the command line beside a block."""
        _, words = await self._run(
            f"for word in {self._here(line)}; do printf '%s\\n' \"$word\"; done"
        )
        _, environment = await self._run("env")
        env = dict(
            pair.split("=", 1) for pair in environment.splitlines() if pair[:10] == "ANABRANCH_"
        )

        def invoke() -> str:
            with contextlib.chdir(self._folder):
                result = CliRunner().invoke(main, words.splitlines()[1:], env=env)
            return "" if result.exit_code == 0 else f"{line}: {result.output} {result.exception!r}"

        return await asyncio.to_thread(invoke)


async def _a_long_report(cluster: Cluster) -> None:
    """Starts the request that the runbook cancels, and lets its end be seen."""
    channel = grpc.aio.insecure_channel(cluster.router)
    request = generation_pb2.GenerateRequest(model=MODEL, prompt="x", request_id="report-17")
    request.sampling.max_tokens, request.sampling.ignore_eos = 30_000, True
    call = model_pb2_grpc.ModelServiceStub(channel).StreamGenerate(
        request, metadata=(("authorization", f"Bearer {await cluster.token('demo')}"),)
    )

    async def until_cancelled() -> None:
        async with channel:
            last = chunk = await call.read()
            while chunk is not grpc.aio.EOF:
                last, chunk = chunk, await call.read()
        assert last.finish_reason == generation_pb2.FINISH_REASON_CANCELLED

    await call.read()
    _reports.append(asyncio.create_task(until_cancelled()))


_reports: list[asyncio.Task[None]] = []


def _ready(count: int) -> Callable[[Cluster], Awaitable[None]]:
    async def wait(cluster: Cluster) -> None:
        await cluster.until_backends(count)

    return wait


async def _served_again(cluster: Cluster) -> None:
    """Every token was dead; waits until the router has one that its backends take."""
    request = generation_pb2.GenerateRequest(model=MODEL, prompt="x")
    request.sampling.max_tokens = 1
    async with grpc.aio.insecure_channel(cluster.router) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)

        async def served() -> bool:
            token = await cluster.token("demo")
            call = stub.Generate(request, metadata=(("authorization", f"Bearer {token}"),))
            return await call.code() is grpc.StatusCode.OK

        await until(served)


BEFORE: dict[str, Callable[[Cluster], Awaitable[None]]] = {
    # One engine is drained there, and the other is back from maintenance.
    "take-it-back": _ready(2),
    "what-would-happen-now": _ready(3),
    "cancel-a-request": _a_long_report,
    "set-a-quota": _served_again,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def operator(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Operator]:
    folder = tmp_path_factory.mktemp("operator")
    (folder / "policy.yaml").write_text("version: 1\nobjectives: {ttft: 2s}\n")
    models = folder / "models"
    (models / "small").mkdir(parents=True)
    write_adapter(models / "support-lora", {"layers.0.q_proj": (8, 8)}, rank=4)
    changing = {"MODEL_SOURCES": str(models), "MAX_ADAPTERS": "2", "SLEEP_MODE": "true"}
    engines = [
        EngineSpec(name, EngineKind.SIM, MODEL, changing) for name in ("engine-1", "engine-2")
    ]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("ANABRANCH_")}
    async with Cluster(tmp_path_factory.mktemp("runbook"), engines=engines) as cluster:
        shell = await asyncio.create_subprocess_exec(
            "bash",
            "-o",
            "pipefail",
            env=clean | {"PYTHONPATH": str(ROOT), "PATH": f"{BIN}:{os.environ['PATH']}"},
            cwd=folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        assert shell.stdin is not None
        shell.stdin.write(f"{grpcurl.shell_function()}trap 'failed=$?' ERR\n".encode())
        yield Operator(cluster, folder, shell)
        shell.stdin.close()
        await shell.wait()


@in_one_loop
@pytest.mark.parametrize("command", HERE, ids=lambda command: command.name)
async def test_a_block_works_and_prints_what_the_runbook_says(operator, command):
    assert not await operator.outcome(command)


@in_one_loop
async def test_a_cancelled_request_ended_so(operator):
    await operator.outcome(next(c for c in HERE if c.section == "cancel-a-request"))
    await asyncio.gather(*_reports)
    assert _reports


@in_one_loop
@pytest.mark.parametrize("line", [line for line in INLINE if line.split()[0] in RUN])
async def test_a_command_within_a_sentence_works(operator, line):
    status, printed = await operator.try_out(line)
    # grep that finds nothing says 1, and 2 where it does not understand.
    assert status == 0 or (line.startswith("grep ") and status == 1), printed


@pytest.mark.parametrize("line", [line for line in INLINE if line.startswith("anabranch ")])
def test_a_command_line_within_a_sentence_exists(line):
    words = [word for word in line.split()[1:] if word.islower() and "." not in word]
    result = CliRunner().invoke(main, [*words, "--help"])
    assert result.exit_code == 0, result.output


def test_what_is_not_run_is_known():
    elsewhere = {command.name for command in COMMANDS if command.where not in ("", "kubectl")}
    assert elsewhere == NOT_RUN
    programs = {line.split()[0] for line in INLINE}
    assert programs == RUN | {"anabranch", "kubectl"} | INLINE_NOT_RUN.keys()


def _kubectl() -> str | None:
    return shutil.which("kubectl") or shutil.which("kubectl", path=str(ROOT / ".tools/bin"))


def _kubectl_lines() -> list[str]:
    scripts = [command.script for command in COMMANDS if command.where == "kubectl"]
    lines = "\n".join(scripts).replace("\\\n", " ").splitlines()
    lines += [line.replace("…", "x") for line in INLINE if line.startswith("kubectl ")]
    return [line.split(" | ")[0].split(" > ")[0] for line in lines if line.strip()]


@in_one_loop
@pytest.mark.skipif(_kubectl() is None, reason="there is no kubectl")
@pytest.mark.parametrize("line", _kubectl_lines())
async def test_kubectl_understands_what_it_is_told(line, tmp_path):
    words = shlex.split(line)
    assert words[0] == "kubectl"
    nowhere = ["--server=http://127.0.0.1:1", "--request-timeout=1s"]
    done = await asyncio.to_thread(
        subprocess.run,
        [str(_kubectl()), *words[1:], *nowhere],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    # Words that it does not know it would have refused before it looked for the cluster.
    assert "connection refused" in done.stderr or "was refused" in done.stderr, done.stderr
