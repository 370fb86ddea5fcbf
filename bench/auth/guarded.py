"""What the guard adds to an RPC that does nothing: with a cached credential, beside no guard.

Caller and server share this process, so what the two kinds of RPC cost differs by the guard alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from anabranch.v1 import model_pb2
from bench.auth.issuer import Issuer
from services.chassis.access import Access
from services.chassis.authn import Verifier, authenticate
from services.chassis.channels import transport_limits
from services.chassis.guard import Guard
from services.chassis.http2.client import ClientConnection, connect
from services.chassis.http2.frames import Code
from services.chassis.http2.server import Server
from services.chassis.origin import Origin
from services.chassis.principal import Address, Principal

_SERVICE, _METHOD = "anabranch.v1.ModelService", "ListModels"
_AT_ONCE = 16
_LARGE = 1 << 20


async def guarded_rpcs(
    issuer: Issuer, verifier: Verifier, calls: int
) -> dict[str, dict[str, float]]:
    """Microseconds of CPU of the process and of wall time an RPC, with and without the guard."""

    async def admit(
        access: Access | None, authorization: str, address: Address | None
    ) -> Principal | None:
        return await authenticate(verifier, access, authorization, address)

    guard = Guard(
        admit,
        max_seconds=60.0,
        max_message_bytes=_LARGE,
        max_concurrent=1000,
        origin=Origin(),
        observer=lambda method, code, seconds: None,
    )
    metadata = (("authorization", f"Bearer {issuer.token()}"),)
    async with _connected([]) as bare, _connected([guard]) as guarded:
        found = {}
        for name, connection in (("RPC without guard", bare), ("RPC with guard", guarded)):
            await _many(connection, metadata, calls // 10)
            cpu, wall = time.process_time(), time.perf_counter()
            await _many(connection, metadata, calls)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            found[name] = {"cpu_us": cpu / calls * 1e6, "wall_us": wall / calls * 1e6}
    return found


@asynccontextmanager
async def _connected(
    interceptors: list[grpc.aio.ServerInterceptor],
) -> AsyncIterator[ClientConnection]:
    """A connection to a server of its own that answers at once with nothing."""

    async def answer(request: Any, context: Any) -> model_pb2.ListModelsResponse:
        return model_pb2.ListModelsResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=model_pb2.ListModelsRequest.FromString,
        response_serializer=model_pb2.ListModelsResponse.SerializeToString,
    )
    server = Server(interceptors=interceptors, limits=transport_limits(_LARGE), max_calls=1000)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler}),)
    )
    port = await server.listen("127.0.0.1:0")
    await server.start()
    try:
        connection = await connect(f"127.0.0.1:{port}", transport_limits(calling=True))
        try:
            yield connection
        finally:
            connection.close(Code.NO_ERROR, "measured")
    finally:
        await server.stop(0.0)


async def _many(
    connection: ClientConnection, metadata: tuple[tuple[str, str], ...], calls: int
) -> None:
    async def some(count: int) -> None:
        for _ in range(count):
            call = connection.call(f"/{_SERVICE}/{_METHOD}", metadata, lambda message: None)
            call.send(b"")
            call.half_close()
            failed = await call.ended
            if failed is not None:
                raise failed

    await asyncio.gather(*(some(calls // _AT_ONCE) for _ in range(_AT_ONCE)))
