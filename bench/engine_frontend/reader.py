"""A caller in a process of its own: starts requests in one session and reads until they end.

`python -m bench.engine_frontend.reader ADDRESS TOKEN STREAMS`, the request on standard input. It
decodes nothing but what it must: it should cost the machine little.
"""

from __future__ import annotations

import asyncio
import sys

import grpc

from anabranch.v1 import relay_pb2

_METHOD = "/anabranch.v1.ModelService/Session"
_PART = 64


async def read(address: str, token: str, streams: int, start: bytes) -> int:
    """Messages that came."""
    async with grpc.aio.insecure_channel(
        address, options=[("grpc.max_receive_message_length", -1)]
    ) as channel:
        call = channel.stream_stream(_METHOD)(metadata=[("authorization", f"Bearer {token}")])
        numbers = range(1, streams + 1)
        for first in range(0, streams, _PART):
            frames = [
                relay_pb2.RelaySessionRequestFrame(stream=number, start=start)
                for number in numbers[first : first + _PART]
            ]
            await call.write(relay_pb2.RelaySessionRequest(frames=frames).SerializeToString())
        await call.done_writing()
        messages = 0
        async for _ in call:
            messages += 1
        return messages


if __name__ == "__main__":
    asyncio.run(read(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.stdin.buffer.read()))
