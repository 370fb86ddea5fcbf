"""Writes one message to a caller, who may have stopped reading or be gone. Buffers nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault, Work


def reads_too_slowly(message: str) -> Fault:
    """RESOURCE_EXHAUSTED for a caller whose output piles up here."""
    return Fault(errors_pb2.ERROR_REASON_SLOW_READER, message, work=Work.OUTPUT_SEEN)


async def write_to_caller(context: grpc.aio.ServicerContext, message: Any, *, stall: float) -> None:
    """Returns once the transport has taken the message.

    Raises Fault SLOW_READER when it takes none for `stall` seconds, and CANCELLED
    when the caller is gone.
    """
    try:
        async with asyncio.timeout(stall):
            await context.write(message)
    except TimeoutError as exc:
        raise reads_too_slowly(f"nothing was read for {stall:g} s") from exc
    except grpc.aio.InternalError as exc:
        raise Fault(
            errors_pb2.ERROR_REASON_CANCELLED, "the caller has left", work=Work.OUTPUT_SEEN
        ) from exc
