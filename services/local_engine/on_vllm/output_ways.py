"""Which way vLLM's outputs take: the fastest that a version of it is known to have."""

from __future__ import annotations

import logging
import re
from typing import Any

from services.local_engine.on_vllm.lane import lane_of
from services.local_engine.on_vllm.outputs import Outputs, StreamedOutputs, TappedOutputs

_log = logging.getLogger(__name__)

KNOWN_FROM, KNOWN_BELOW = (0, 25), (0, 34)
"""Versions of vLLM whose collectors are known."""


def outputs_for(llm: Any, version: str) -> Outputs:
    """The fastest way that this version of vLLM is known to have."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and KNOWN_FROM <= (int(found[1]), int(found[2])) < KNOWN_BELOW:
        return lane_of(llm) or TappedOutputs(llm)
    _log.warning(
        "this version of vLLM is unknown: outputs come through its public stream, which costs a "
        "task and a wake-up for each request and token",
        extra={
            "version": version,
            "known": f"{_spelled(KNOWN_FROM)} to below {_spelled(KNOWN_BELOW)}",
        },
    )
    return StreamedOutputs(llm)


def _spelled(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
