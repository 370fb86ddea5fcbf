"""The two ways to keep so many answers running: over sessions, and as plain RPCs.

Lean on purpose: raw grpc.aio, chunks of sessions undecoded. Each slot starts a new request when
its last one ends; the first ones have random lengths, so that they do not all end together.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

import grpc
from google.rpc import status_pb2

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import relay_pb2
from bench.dataplane.meter import Meter
from bench.dataplane.requests import request

_SERVICE = "/anabranch.v1.ModelService/"
_START_BATCH = 500
"""Starts in one message: well below the size that a message may have."""

Metadata = Sequence[tuple[str, str]]


class SessionLoad:
    """One session that keeps `streams` answers running, `watched` of them with their delays."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        metadata: Metadata,
        meter: Meter,
        *,
        model: str,
        tokens: int,
        streams: int,
        watched: int,
        seed: int,
    ) -> None:
        self._call = channel.stream_stream(
            _SERVICE + "Session",
            request_serializer=relay_pb2.RelaySessionRequest.SerializeToString,
        )(metadata=metadata)
        self._meter = meter
        self._model, self._tokens = model, tokens
        self._streams, self._watched_count = streams, watched
        self._request = request(model, tokens)
        # The same lengths in every run; nothing secret hangs on them.
        self._random = random.Random(seed)  # noqa: S311
        self._number = 0
        self._started: dict[int, float] = {}
        self._watched: dict[int, float] = {}

    async def run(self) -> None:
        """Runs until cancelled; ends early, with an error counted, when the session breaks."""
        try:
            await self._call.read()
            for first in range(0, self._streams, _START_BATCH):
                count = min(_START_BATCH, self._streams - first)
                await self._start([self._first_request() for _ in range(count)])
            for number in range(1, self._watched_count + 1):
                self._watched[number] = 0.0
            while (raw := await self._call.read()) is not grpc.aio.EOF:
                ended = self._take(raw)
                if ended:
                    await self._start([self._request] * ended)
            self._meter.errors["session ended"] += 1
        except grpc.aio.AioRpcError as error:
            self._meter.errors[f"{error.code().name}: {error.details()}"] += 1
        finally:
            self._call.cancel()

    def _first_request(self) -> bytes:
        return request(self._model, self._random.randint(1, self._tokens))

    async def _start(self, requests: Sequence[bytes]) -> None:
        frames = []
        now = time.perf_counter()
        for raw in requests:
            self._number += 1
            self._started[self._number] = now
            frames.append(relay_pb2.RelaySessionRequestFrame(stream=self._number, start=raw))
        await self._call.write(relay_pb2.RelaySessionRequest(frames=frames))

    def _take(self, raw: bytes) -> int:
        """Counts a message; how many answers it ended."""
        now = time.perf_counter()
        meter, started, watched = self._meter, self._started, self._watched
        meter.messages += 1
        tokens = ended = 0
        for frame in relay_pb2.RelaySessionResponse.FromString(raw).frames:
            tokens += frame.tokens
            number = frame.stream
            if number in started:
                meter.ttfts.append(now - started.pop(number))
            if number in watched:
                before = watched[number]
                if before:
                    meter.gaps.append(now - before)
                watched[number] = now
            if frame.last:
                ended += 1
                if frame.error:
                    meter.errors[status_pb2.Status.FromString(frame.error).message] += 1
                else:
                    meter.requests += 1
                if watched.pop(number, None) is not None:
                    watched[self._number + ended] = 0.0
        meter.tokens += tokens
        return ended


class PlainLoad:
    """One slot that makes StreamGenerate calls, one after the other."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        metadata: Metadata,
        meter: Meter,
        *,
        model: str,
        tokens: int,
        watched: bool,
        seed: int,
    ) -> None:
        self._start = channel.unary_stream(_SERVICE + "StreamGenerate")
        self._metadata = metadata
        self._meter = meter
        self._watched = watched
        self._request = request(model, tokens)
        length = random.Random(seed).randint(1, tokens)  # noqa: S311 - not a secret
        self._next = request(model, length)

    async def run(self) -> None:
        """Runs until cancelled. A failed call is counted, and followed by another."""
        while True:
            raw, self._next = self._next, self._request
            call = self._start(raw, metadata=self._metadata)
            try:
                await self._read(call)
                self._meter.requests += 1
            except grpc.aio.AioRpcError as error:
                self._meter.errors[f"{error.code().name}: {error.details()}"] += 1
                await asyncio.sleep(0.05)
            finally:
                call.cancel()

    async def _read(self, call: grpc.aio.UnaryStreamCall) -> None:
        meter, read, clock = self._meter, call.read, time.perf_counter
        started, before = clock(), 0.0
        while (raw := await read()) is not grpc.aio.EOF:
            if not before:
                before = clock()
                meter.ttfts.append(before - started)
            elif self._watched:
                now = clock()
                meter.gaps.append(now - before)
                before = now
            meter.messages += 1
            # A relay may join tokens, so they are counted, not assumed.
            meter.tokens += len(pb.GenerateChunk.FromString(raw).token_ids)
