"""The examples in every language work: built and called as examples/README.md prints, against real
processes, and answering what the client library answers.

Beside the examples this tests the server: five implementations of gRPC talk to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from anabranch import AsyncClient
from anabranch.auth_admin import AuthAdmin
from anabranch.errors import QuotaExceededError
from anabranch.v1 import auth_pb2
from tests.support import tls
from tests.support.inprocess import MODEL as TLS_MODEL
from tests.support.inprocess import Cluster as LocalCluster
from tests.support.inprocess import cluster as local_cluster
from tests.support.waiting import BOUND_S, until
from tools import local_stubs
from tools.cluster import Cluster, EngineKind, EngineSpec
from tools.protos import deps

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "examples/README.md").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
MODEL = "smollm2-135m-instruct"
SLOW = "sim-slow"
"""A model whose every token takes half a second."""

NEEDS = {
    "C++": ("cpp", "cmake", "c++", "pkg-config", "/usr/include/grpcpp/grpcpp.h"),
    "Go": ("go", "go", "/usr/share/gocode/src/google.golang.org/grpc"),
    "Java": ("java", "javac", "/usr/share/java/grpc-netty.jar"),
    "Python": ("python",),
    "TypeScript": ("typescript", "npm", str(ROOT / "examples/typescript/node_modules/.bin/tsc")),
}
"""Title in the README → folder, and what it is built with beside the stubs' plugins."""

WITH_SESSION = ("C++", "Python", "TypeScript")
WITH_TLS = ("C++", "Go", "Python", "TypeScript")
"""All but Java: Debian's Netty is built without ALPN, and so without HTTP/2 over TLS."""

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
in_one_loop = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Done:
    """How a program ended, and what it had said."""

    code: int
    out: str
    err: str


class Example:
    """The programs of one language, and a shell's words for each."""

    def __init__(self, title: str) -> None:
        section = README.partition(f"## {title}\n")[2].partition("\n## ")[0]
        self.title = title
        lines = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[0].splitlines()
        self.exports = [line for line in lines if line.startswith("export ")]
        self.builds = [line for line in lines if MODEL not in line and line not in self.exports]
        calls = [line.partition(f" {MODEL} ")[0] for line in lines if MODEL in line]
        self.stream = calls[0]
        self.session = calls[1] if len(calls) > 1 else ""

    def build(self) -> None:
        """Generates the stubs and builds. Skips the test where that cannot be done here."""
        folder, *programs = NEEDS[self.title]
        lacking = [name for name in programs if not (shutil.which(name) or Path(name).exists())]
        if folder in local_stubs.TEMPLATES:
            lacking += local_stubs.missing(folder)
        if lacking:
            pytest.skip(f"{', '.join(lacking)} is missing: make examples-tools")
        if folder in local_stubs.TEMPLATES:
            deps()
            local_stubs.generate(folder)
        if self.builds:
            script = "\n".join((*self.exports, *self.builds))
            done = subprocess.run(
                ["bash", "-euc", script],
                cwd=ROOT,
                env=environment({}),
                check=False,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout + done.stderr

    async def start(
        self, call: str, *words: str, env: dict[str, str]
    ) -> asyncio.subprocess.Process:
        """Starts a program as its README does. Ctrl-C reaches it, not a shell around it."""
        return await asyncio.create_subprocess_exec(
            *("bash", "-c", f'exec {call} "$@"', "example", *words),
            cwd=ROOT,
            env=environment(env),
            stdout=PIPE,
            stderr=PIPE,
        )

    async def run(self, call: str, *words: str, env: dict[str, str]) -> Done:
        """Runs a program to its end."""
        process = await self.start(call, *words, env=env)
        try:
            out, err = await asyncio.wait_for(process.communicate(), BOUND_S)
        finally:
            if process.returncode is None:
                process.kill()
        return Done(process.returncode or 0, out.decode(), err.decode())


def environment(extra: dict[str, str]) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if name.startswith("ANABRANCH_")}
    own = {name: value for name, value in os.environ.items() if name not in ours}
    # Go keeps what it compiled; the rest is under .build already.
    return own | {"PYTHONPATH": str(ROOT), "GOCACHE": str(ROOT / ".build/gocache")} | extra


@pytest.fixture(scope="module", params=NEEDS)
def example(request: pytest.FixtureRequest) -> Example:
    made = Example(request.param)
    made.build()
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    engines = (
        EngineSpec("engine-1", EngineKind.SIM, MODEL),
        EngineSpec("engine-2", EngineKind.SIM, SLOW, {"SIM_SPEED": "0.01"}),
    )
    directory = tmp_path_factory.mktemp("examples")
    async with Cluster(directory, engines=engines, cloud=False) as running:
        yield running


def caller(cluster: Cluster, client_id: str = "demo", secret_file: Path | None = None):
    """The variables that `source .run/cluster/env` sets."""
    return {
        "ANABRANCH_TARGET": cluster.router,
        "ANABRANCH_AUTH_TARGET": cluster.auth,
        "ANABRANCH_CLIENT_ID": client_id,
        "ANABRANCH_CLIENT_SECRET_FILE": str(secret_file or cluster.secrets / client_id),
        # gRPC of each language takes it; a config that it does not understand fails the call.
        "ANABRANCH_SERVICE_CONFIG_FILE": str(ROOT / "anabranch/service_config.json"),
    }


async def from_library(cluster: Cluster, model: str, **asked) -> str:
    async with AsyncClient.from_env(caller(cluster)) as client:
        answer = await client.generate(model=model, temperature=0, **asked)
    return answer.text


def test_the_readme_names_what_the_makefile_installs():
    for variable, title in (("CPP", "C++"), ("GO", "Go"), ("JAVA", "Java")):
        section = README.partition(f"## {title}\n")[2].partition("\n## ")[0]
        named = re.findall(r"Debian: `([^`]*)`", section)[0].split()
        installed = re.findall(
            rf"^EXAMPLES_{variable} *:= ((?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE
        )
        assert named == installed[0].replace("\\\n", " ").split()


def test_the_lock_file_leaves_the_registry_to_the_machine():
    assert '"resolved"' not in (ROOT / "examples/typescript/package-lock.json").read_text("utf-8")


@in_one_loop
async def test_a_stream_is_what_the_library_says_and_ends_with_a_receipt(cluster, example):
    prompt = "What is the capital of France?"
    expected = await from_library(cluster, MODEL, messages=prompt, max_tokens=40)
    done = await example.run(example.stream, MODEL, prompt, "40", env=caller(cluster))
    assert done.code == 0, done.err
    assert done.out == expected + "\n"
    assert re.fullmatch(r"receipt: TIER_LOCAL engine-1, [1-9]\d* tokens\n", done.err)


@in_one_loop
async def test_text_beyond_ascii_arrives_whole(cluster, example):
    prompt = "Où coule la rivière 长江?"
    expected = await from_library(cluster, MODEL, messages=prompt, max_tokens=20)
    done = await example.run(example.stream, MODEL, prompt, "20", env=caller(cluster))
    assert (done.code, done.out) == (0, expected + "\n"), done.err


@in_one_loop
async def test_an_error_names_its_reason(cluster, example, tmp_path):
    done = await example.run(example.stream, "no-such-model", "hello", env=caller(cluster))
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: MODEL_NOT_FOUND: ")
    assert "no-such-model" in done.err
    wrong = tmp_path / "secret"
    wrong.write_text("not the secret\n")
    done = await example.run(example.stream, MODEL, "hello", env=caller(cluster, secret_file=wrong))
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: CREDENTIAL_REJECTED: ")


@in_one_loop
async def test_a_refusal_with_a_time_is_tried_once_more_after_it(cluster, example):
    client_id = f"hasty-{NEEDS[example.title][0]}"
    await asyncio.to_thread(hasty_client, cluster, client_id)
    env = caller(cluster, client_id)

    async def refused_once() -> bool:
        # Whenever the example comes, others of its client have used up what there is; they stop as
        # it begins to wait. What comes free just then may still go to them: it is tried again.
        spending = asyncio.create_task(spend(env))
        process = await example.start(example.stream, MODEL, "hello", "4", env=env)
        try:
            assert process.stderr is not None
            async with asyncio.timeout(BOUND_S):
                said = [await process.stderr.readline(), await process.stderr.readline()]
            spending.cancel()
            out, rest = await asyncio.wait_for(process.communicate(), BOUND_S)
        finally:
            spending.cancel()
            await asyncio.wait([spending])
            if process.returncode is None:
                process.kill()
        assert spending.cancelled()
        if not said[0].startswith(b"error: QUOTA_EXCEEDED: ") or process.returncode:
            return False
        assert said[1].startswith(b"once more in ")
        return out.startswith(b"[sim]") and rest.startswith(b"receipt: ")

    await until(refused_once, 3 * BOUND_S)


async def spend(env: dict[str, str]) -> None:
    """Asks again and again, whatever the answer."""
    async with AsyncClient.from_env(env) as client:
        while True:
            with contextlib.suppress(QuotaExceededError):
                await client.generate(model=MODEL, messages="hello", max_tokens=4)
            await asyncio.sleep(0.02)


def hasty_client(cluster: Cluster, client_id: str) -> None:
    """Creates a client that may ask once in five seconds; its secret joins the others."""
    environ = caller(cluster, "admin")
    with AuthAdmin.from_env(environ) as admin:
        made = admin.stub.CreateClient(
            auth_pb2.CreateClientRequest(client_id=client_id, tenant="demo", scopes=["generate"])
        )
        quota = auth_pb2.Quota(
            tenant="demo",
            client_id=client_id,
            unit=auth_pb2.QUOTA_UNIT_REQUESTS,
            limit=1,
        )
        quota.period.FromSeconds(5)
        admin.stub.SetQuota(auth_pb2.SetQuotaRequest(quota=quota))
    (cluster.secrets / client_id).write_text(made.client_secret + "\n")


@in_one_loop
async def test_ctrl_c_frees_the_slot(cluster, example):
    process = await example.start(
        example.stream, SLOW, "Tell me everything.", "4000", env=caller(cluster)
    )

    async def running() -> int:
        [backend] = [b for b in await cluster.backends() if b.backend_id == "engine-2"]
        return int(backend.in_flight + backend.load.running)

    try:
        async with asyncio.timeout(BOUND_S):
            assert process.stdout is not None
            # The first words are printed while the rest is still to come.
            assert await process.stdout.read(5) == b"[sim]"
        assert await running() > 0
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), BOUND_S)
    finally:
        if process.returncode is None:
            process.kill()
    assert (process.returncode, err.decode()) == (130, "cancelled\n")

    async def is_free() -> bool:
        return await running() == 0

    await until(is_free)


@in_one_loop
@pytest.mark.parametrize("example", WITH_SESSION, indirect=True)
async def test_a_session_answers_one_request_and_cancels_the_other(cluster, example):
    # A simulated answer follows from the prompt, not from the model: this one has eight tokens. The
    # other one would have 64, so there is half a minute for its cancellation to arrive.
    expected = await from_library(cluster, MODEL, prompt="The lake is", max_tokens=64)
    done = await example.run(
        example.session, SLOW, "The lake is", "A river is", env=caller(cluster)
    )
    assert done.code == 0, done.err
    ends = dict(line.split(" ", 1) for line in done.out.splitlines())
    reason, _, text = ends["1"].partition(": ")
    assert reason in ("FINISH_REASON_STOP", "FINISH_REASON_LENGTH")
    assert text == expected
    assert ends["2"].startswith("FINISH_REASON_CANCELLED: [sim]")


@in_one_loop
@pytest.mark.parametrize("example", WITH_SESSION, indirect=True)
async def test_a_session_outlives_a_request_that_fails(cluster, example):
    done = await example.run(example.session, "no-such-model", "a", "b", env=caller(cluster))
    assert done.code == 0, done.err
    assert sorted(line[0] for line in done.out.splitlines()) == ["1", "2"]
    assert done.out.count("no-such-model") == 2


# TLS


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secured(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalCluster]:
    directory = tmp_path_factory.mktemp("examples-tls")
    async with local_cluster(directory, certificates=tls.made(directory / "certs")) as running:
        yield running


@in_one_loop
@pytest.mark.parametrize("example", WITH_TLS, indirect=True)
async def test_mutual_tls_is_spoken_where_the_environment_names_certificates(
    secured, example, tmp_path
):
    client_id = f"tls-{NEEDS[example.title][0]}"
    secret = tmp_path / "secret"
    secret.write_text(await secured.new_client(client_id, "generate"))
    certs = secured.certificates
    env = {
        "ANABRANCH_TARGET": secured.router.address,
        "ANABRANCH_AUTH_TARGET": secured.auth.address,
        "ANABRANCH_CLIENT_ID": client_id,
        "ANABRANCH_CLIENT_SECRET_FILE": str(secret),
        "ANABRANCH_TLS_CA_FILE": str(certs / "ca.pem"),
    }
    refused = await example.run(example.stream, TLS_MODEL, "hello", "8", env=env)
    assert (refused.code, refused.out) == (1, "")
    assert re.search(r"^error: (UNAVAILABLE|Unavailable|status 14): ", refused.err, re.MULTILINE)
    env |= {
        "ANABRANCH_TLS_CERT_FILE": str(certs / "client.pem"),
        "ANABRANCH_TLS_KEY_FILE": str(certs / "client.key"),
    }
    done = await example.run(example.stream, TLS_MODEL, "hello", "8", env=env)
    assert done.code == 0, done.err
    assert done.out.startswith("[sim]")
