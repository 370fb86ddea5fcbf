"""Where and with what a run was made, for its record."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from bench.dataplane import gateways, proxies
from tools.cluster.recipes import ROOT

_PACKAGES = ("grpcio", "protobuf", "uvloop", "anabranch")


def record() -> dict[str, Any]:
    """Machine, versions, commit."""
    envoy, nginx = proxies.find_envoy(), proxies.find_nginx()
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "kernel": platform.release(),
            "load_average_before": os.getloadavg(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            "envoy": proxies.version_of(envoy) if envoy else None,
            "nginx": proxies.version_of(nginx) if nginx else None,
            "litellm": gateways.version(gateways.LITELLM, "litellm"),
            "smg": gateways.version(gateways.SMG, "smg"),
        },
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": len(_git("status", "--porcelain", "--untracked-files=no").splitlines()),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _git(*arguments: str) -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    done = subprocess.run([git, *arguments], cwd=ROOT, check=False, capture_output=True, text=True)
    return done.stdout.strip()
