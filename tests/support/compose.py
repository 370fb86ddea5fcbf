"""docker-compose.yml as podman-compose, an implementation of Compose, understands it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tools import compose_env

ROOT = Path(__file__).resolve().parents[2]
OURS = {
    "router": ("services.router", "ANABRANCH_ROUTER_"),
    "engine-cpu-1": ("services.local_engine", "ANABRANCH_ENGINE_"),
    "engine-cpu-2": ("services.local_engine", "ANABRANCH_ENGINE_"),
    "engine-gpu-1": ("services.local_engine", "ANABRANCH_ENGINE_"),
    "engine-gpu-2": ("services.local_engine", "ANABRANCH_ENGINE_"),
    "cloud-proxy": ("services.cloud_proxy", "ANABRANCH_CLOUD_"),
    "auth": ("services.auth", "ANABRANCH_AUTH_"),
}
"""Compose's services that are ours: the package that runs, and the prefix of its settings."""


def written(profile: str = "cpu", **more: str) -> str:
    """A .env as the tool writes it, with some values changed."""
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    return compose_env.filled(example, compose_env.values(profile, "", {}) | more)


def config(env_file: Path, *files: str) -> subprocess.CompletedProcess[str]:
    """`config` of the file, or of several together, with the variables of that file alone."""
    command = [sys.executable, "-m", "podman_compose", "--dry-run", "--env-file", str(env_file)]
    for name in files:
        command += ["--file", str(ROOT / name)]
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("ANABRANCH_", "COMPOSE_"))}
    return subprocess.run(
        [*command, "config"],
        cwd=ROOT,
        env=outside,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@functools.cache
def resolved(*profiles: str, overlay: str = "") -> dict[str, Any]:
    """The whole model with these profiles: anchors merged, variables filled in."""
    with tempfile.TemporaryDirectory() as folder:
        env_file = Path(folder) / "env"
        env_file.write_text(written(COMPOSE_PROFILES=",".join(profiles)), encoding="utf-8")
        done = config(env_file, "docker-compose.yml", *([overlay] if overlay else []))
    assert done.returncode == 0, done.stderr
    model: dict[str, Any] = yaml.safe_load(done.stdout)
    return model


def every_service() -> dict[str, dict[str, Any]]:
    """The services of all profiles together."""
    services: dict[str, dict[str, Any]] = resolved("cpu", "gpu", "alerts", "cli")["services"]
    return services


def mounts(service: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Where in the container → what is mounted there, and how (`ro` or `rw`)."""
    found = {}
    for volume in service.get("volumes", ()):
        source, target, *mode = volume.split(":")
        found[target] = (source, mode[0] if mode else "rw")
    return found
