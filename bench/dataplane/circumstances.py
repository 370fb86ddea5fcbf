"""Where and with what a run was made, for its record: also the versions of all that took part."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from bench import circumstances
from bench.dataplane import gateways, proxies

_PACKAGES = ("grpcio", "protobuf", "uvloop", "anabranch")


def record() -> dict[str, Any]:
    """Machine, versions, commit."""
    envoy, nginx = proxies.find_envoy(), proxies.find_nginx()
    return circumstances.record() | {
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            "envoy": proxies.version_of(envoy) if envoy else None,
            "nginx": proxies.version_of(nginx) if nginx else None,
            "litellm": gateways.version(gateways.LITELLM, "litellm"),
            "smg": gateways.version(gateways.SMG, "smg"),
        },
    }
