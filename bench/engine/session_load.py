"""Asks over one session, as a router or an internal service does, and notes when tokens come.

Lean on purpose: raw grpc.aio, chunks undecoded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import grpc
from google.rpc import status_pb2

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import relay_pb2, session_pb2
from bench.engine import cancelling
from bench.engine.flight import CancelOrder, Flight, Order

_METHOD = "/anabranch.v1.ModelService/Session"
_LONGEST = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_http_proxy", 0)]
_LOOK_S = 300.0


def request(model: str, prompt: Sequence[int], tokens: int) -> bytes:
    """A greedy request of exactly so many tokens, for this engine and no cloud."""
    return pb.GenerateRequest(
        model=model,
        prompt_token_ids=prompt,
        sampling=pb.Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True),
        routing=pb.Routing(residency=pb.RESIDENCY_LOCAL_ONLY),
    ).SerializeToString()


class Session:
    """One session. Used by one task; `read` gives what a message brought."""

    def __init__(self, channel: grpc.aio.Channel, authorization: str) -> None:
        self._call = channel.stream_stream(
            _METHOD, request_serializer=relay_pb2.RelaySessionRequest.SerializeToString
        )(metadata=(("authorization", authorization),) if authorization else ())
        self._number = 0
        self.running: dict[int, Flight] = {}
        self.load: session_pb2.LoadReport | None = None

    async def greet(self) -> None:
        """Waits until the session is there. Raises grpc.aio.AioRpcError."""
        await self._call.read()

    async def start(self, requests: Sequence[bytes]) -> list[Flight]:
        """Starts all of them in one message."""
        flights, frames = [], []
        for raw in requests:
            self._number += 1
            flight = self.running[self._number] = Flight()
            flights.append(flight)
            frames.append(relay_pb2.RelaySessionRequestFrame(stream=self._number, start=raw))
        now = time.monotonic()
        for flight in flights:
            flight.sent = now
        await self._call.write(relay_pb2.RelaySessionRequest(frames=frames))
        return flights

    async def cancel(self, numbers: Sequence[int]) -> None:
        """Cancels streams, in one message."""
        frames = [
            relay_pb2.RelaySessionRequestFrame(stream=number, cancel=session_pb2.SessionCancel())
            for number in numbers
        ]
        await self._call.write(relay_pb2.RelaySessionRequest(frames=frames))

    async def read(self) -> float:
        """Takes the next message; when it came. A session that ends fails what runs."""
        raw = await self._call.read()
        now = time.monotonic()
        if raw is grpc.aio.EOF:
            self._fail("the session ended")
            return now
        message = relay_pb2.RelaySessionResponse.FromString(raw)
        if message.HasField("load"):
            self.load = message.load
        running = self.running
        for frame in message.frames:
            flight = running.get(frame.stream)
            if flight is None:
                continue
            if frame.tokens:
                if not flight.tokens:
                    flight.first = now
                flight.tokens += frame.tokens
                flight.last = now
            if frame.last:
                if frame.error:
                    flight.error = status_pb2.Status.FromString(frame.error).message
                del running[frame.stream]
        return now

    def _fail(self, why: str) -> None:
        for flight in self.running.values():
            flight.error = why
        self.running.clear()

    def close(self) -> None:
        """Ends it."""
        self._call.cancel()


async def load(order: Order) -> list[Flight]:
    """Carries the order out. Raises grpc.aio.AioRpcError."""
    async with grpc.aio.insecure_channel(order.target, options=_LONGEST) as channel:
        session = Session(channel, order.authorization)
        flights: list[Flight] = []
        waves = [[request(order.model, p, order.tokens) for p in wave] for wave in order.waves]
        try:
            await session.greet()
            await asyncio.sleep(max(0.0, order.at - time.monotonic()))
            async with asyncio.timeout(_LOOK_S):
                for wave in waves:
                    flights += await session.start(wave)
                    while session.running:
                        await session.read()
        finally:
            session.close()
    return flights


async def cancel(order: CancelOrder) -> dict[str, float]:
    """Cancels one of the streams that fill the engine, then all but the one that waited; see
    cancelling.py. Raises grpc.aio.AioRpcError, TimeoutError, NotFull."""
    requests = [request(order.model, prompt, order.tokens) for prompt in order.prompts]
    async with grpc.aio.insecure_channel(order.target, options=_LONGEST) as channel:
        session = Session(channel, order.authorization)
        await session.greet()
        reading = asyncio.create_task(_read_on(session))
        try:
            fillers = await session.start(requests[1:])
            numbers = list(session.running)

            async def wait() -> Flight:
                (waiter,) = await session.start(requests[:1])
                return waiter

            async def stop(count: int) -> None:
                await session.cancel([numbers.pop() for _ in range(count)])

            async def used() -> float:
                # Reports come along with the messages.
                return session.load.kv_used_tokens if session.load is not None else 0.0

            return await cancelling.measure(fillers, wait, stop, used)
        finally:
            reading.cancel()
            session.close()
            await asyncio.gather(reading, return_exceptions=True)


async def _read_on(session: Session) -> None:
    while True:
        await session.read()
