"""The two sides of a connection agree, and what is too large is refused the same way each time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from services.chassis.channels import open_channel, transport_limits
from services.chassis.http2.server import Server
from tests.support.waiting import BOUND_S


async def echo(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return request[:1]


async def fail(request: bytes, context: grpc.aio.ServicerContext) -> None:
    details = (("details-bin", b"x" * int(request)),)
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no", details)


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    methods = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
    }
    server = Server(limits=transport_limits(), max_calls=1000)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", methods),))
    port = await server.listen("127.0.0.1:0")
    await server.start()
    unlimited = [("grpc.max_send_message_length", -1)]
    async with open_channel(f"127.0.0.1:{port}", options=unlimited) as channel:
        yield channel
    await server.stop(None)


async def status(
    channel: grpc.aio.Channel, body: bytes = b"1", header: int = 0, method: str = "Echo"
) -> str:
    metadata = (("h", "v" * header),) if header else None
    try:
        await channel.unary_unary(f"/t.T/{method}")(body, timeout=BOUND_S, metadata=metadata)
    except grpc.aio.AioRpcError as refused:
        return str(refused.code().name)
    return "OK"


async def test_a_message_over_the_limit_is_refused_and_the_connection_lives(channel):
    assert await status(channel, b"x" * (4 << 20)) == "OK"
    assert await status(channel, b"x" * (5 << 20)) == "RESOURCE_EXHAUSTED"
    assert await status(channel) == "OK"


@pytest.mark.parametrize(
    ("size", "expected"),
    [(4096, "OK"), (7500, "OK"), (9216, "RESOURCE_EXHAUSTED"), (16000, "RESOURCE_EXHAUSTED")],
)
async def test_metadata_is_refused_by_its_size_alone(channel, size: int, expected: str):
    assert {await status(channel, header=size) for _ in range(10)} == {expected}


async def test_long_error_details_reach_the_caller(channel):
    assert await status(channel, b"16000", method="Fail") == "INVALID_ARGUMENT"
