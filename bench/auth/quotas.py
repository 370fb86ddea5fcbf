"""How far processes that share a quota exceed it: runs bench.auth.quota_overshoot, if there is."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from typing import Any

from bench.auth.failure import LookFailed
from bench.auth.plan import Plan

_MODULE = "bench.auth.quota_overshoot"
WITH_REDIS = "up"
"""The one scene in which Redis is there all the time."""


def available() -> bool:
    """Whether the module is there."""
    return importlib.util.find_spec(_MODULE) is not None


async def look(plan: Plan) -> dict[str, Any]:
    """What it prints: load and scenes. Raises LookFailed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", _MODULE, *plan.quota_arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complaint = await process.communicate()
    if process.returncode:
        raise LookFailed(f"quota_overshoot: {complaint.decode(errors='replace')[-500:]}")
    found: dict[str, Any] = json.loads(said)
    return found
