"""Carries a session's connection on to the sibling process that holds the session.

A caller that reconnects reaches any worker behind the port. That one passes messages both ways,
undecoded, between the caller and the sibling's private socket, with the caller's own credential.
"""

from __future__ import annotations

import asyncio

import grpc

from services.chassis.detached_sessions import session_lost
from services.chassis.errors import fault_from_rpc_error
from services.chassis.model_session import HandOver
from services.chassis.origin import sibling_metadata
from services.chassis.principal import current_address
from services.chassis.session_wire import SessionWire
from services.chassis.workers.siblings import Roster

_METHOD = "/anabranch.v1.ModelService/Session"


async def hand_over(
    siblings: Roster, session: HandOver, wire: SessionWire, authorization: str
) -> None:
    """Returns when the sibling has ended the connection. Raises its Fault, and WireLost.

    Raises Fault SESSION_LOST when that process is gone, and every session with it.
    """
    channel = siblings.connect(session.where.index, session.where.number)
    if channel is None:
        raise session_lost()
    try:
        metadata = (("authorization", authorization), *sibling_metadata(current_address()))
        call = channel.stream_stream(_METHOD)(metadata=metadata)
        try:
            await _carry(call, session.opening, wire)
        except grpc.aio.AioRpcError as error:
            raise fault_from_rpc_error(error) from error
        finally:
            call.cancel()
    finally:
        await channel.close()


async def _carry(call: grpc.aio.StreamStreamCall, opening: bytes, wire: SessionWire) -> None:
    # The sibling's greeting goes no further: the caller has had one.
    if await call.read() is grpc.aio.EOF:
        return
    await call.write(opening)
    try:
        async with asyncio.TaskGroup() as tasks:
            upward = tasks.create_task(_carry_up(call, wire))
            while (message := await call.read()) is not grpc.aio.EOF:
                if not wire.send(message):
                    await wire.drained()
            upward.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


async def _carry_up(call: grpc.aio.StreamStreamCall, wire: SessionWire) -> None:
    try:
        while (message := await wire.receive()) is not None:
            await call.write(message)
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return  # the sibling has ended it; the other direction learns why
