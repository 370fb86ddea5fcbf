"""What an engine core says of a request that failed in it, as a Fault. Does not import vLLM."""

from __future__ import annotations

import logging

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault, Work
from services.local_engine import engine

_log = logging.getLogger(__name__)

OUT_OF_MEMORY = "anabranch:out-of-memory:"
"""How the reason to stop begins that in_core/memory_guard.py gives the request which it fails;
what it knows of the cause follows."""


def core_failure(finish_reason: str | None, stop_reason: object) -> Fault | None:
    """The failure that an output tells of; None for one that tells of none, or of no known one."""
    if finish_reason != "error" or not isinstance(stop_reason, str):
        return None
    if not stop_reason.startswith(OUT_OF_MEMORY):
        return None
    _log.error(
        "out of memory: one request failed, the others are computed again",
        extra={"cause": stop_reason.removeprefix(OUT_OF_MEMORY)},
    )
    return Fault(
        errors_pb2.ERROR_REASON_OVERLOADED,
        "the engine ran out of memory, and this request had the largest part in it",
        retry_after=2.0,
        work=Work.MAYBE_BILLED,
        metadata={"cause": engine.OUT_OF_MEMORY},
    )
