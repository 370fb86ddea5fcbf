"""One Session RPC: opens it, passes messages both ways, and says how it ended.

Carries a session for as long as the connection lasts. What the messages mean, and whether another
connection follows, is the session's business.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError

from anabranch.dial import Dial
from anabranch.errors import AnabranchError, Work, error_for, error_from_rpc
from anabranch.v1 import relay_pb2, session_pb2

METHOD = "/anabranch.v1.ModelService/Session"

# How long a session without requests waits for the service to end it, before it hangs up.
GOODBYE = 5.0


class Carried(Protocol):
    """The session that a connection carries. Called on the event loop; must not block."""

    wake: asyncio.Event

    def greet(self, ready: session_pb2.SessionReady) -> relay_pb2.RelaySessionRequest | None:
        """The service is there. What is to be asked before anything else: to resume, or nothing."""

    def resumed(self, answer: session_pb2.SessionResumed) -> None:
        """The service goes on with the session."""

    def hear(self, message: relay_pb2.RelaySessionResponse, size: int) -> None:
        """A message of so many bytes came. Raises AnabranchError when it should not have."""

    def next_message(self) -> relay_pb2.RelaySessionRequest | None:
        """What to send next, if there is anything."""

    def has_finished(self) -> bool:
        """Whether nothing more will be asked or answered."""

    async def renew(self) -> None:
        """Provides fresh credentials until cancelled."""


class Connection:
    """One RPC over a channel of its own; `run` is its whole life."""

    def __init__(self, target: str, dial: Dial, patience: float, session: Carried) -> None:
        self._target = target
        self._dial = dial
        self._patience = patience
        self._session = session

    async def run(self, authorization: str) -> None:
        """Returns when the service has ended the session in order. Raises AnabranchError."""
        channel = self._dial()
        try:
            await self._converse(channel, authorization)
        finally:
            await channel.close()

    async def _converse(self, channel: grpc.aio.Channel, authorization: str) -> None:
        call = channel.stream_stream(
            METHOD, request_serializer=relay_pb2.RelaySessionRequest.SerializeToString
        )(metadata=(("authorization", authorization),) if authorization else ())
        tasks: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(self._patience):
                await self._open(call)
            tasks = [
                asyncio.create_task(self._write(call), name="anabranch-write"),
                asyncio.create_task(self._session.renew(), name="anabranch-renew"),
            ]
            hear = self._session.hear
            while (raw := await call.read()) is not grpc.aio.EOF:
                hear(self._parsed(raw), len(raw))
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, self._target) from None
        except TimeoutError:
            raise error_for(
                "DEPENDENCY_UNAVAILABLE",
                f"cannot reach {self._target}: no session within {self._patience:g} s",
                grpc.StatusCode.UNAVAILABLE,
            ) from None
        except asyncio.CancelledError:
            # A local hang-up surfaces here too; only a cancelled task is a cancellation.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
        finally:
            for task in tasks:
                task.cancel()
            call.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _open(self, call: grpc.aio.StreamStreamCall) -> None:
        first = await self._read(call)
        if not first.HasField("ready"):
            raise self._protocol("did not begin the session with `ready`")
        resume = self._session.greet(first.ready)
        if resume is None:
            self._session.hear(first, 0)
            return
        await call.write(resume)
        # Until it answers, what it says is about the session that it had just offered.
        while not (answer := await self._read(call)).HasField("resumed"):
            continue
        self._session.resumed(answer.resumed)

    async def _read(self, call: grpc.aio.StreamStreamCall) -> relay_pb2.RelaySessionResponse:
        raw = await call.read()
        if raw is grpc.aio.EOF:
            raise error_for(
                "BACKEND_LOST",
                f"the service ended the session at once ({self._target})",
                grpc.StatusCode.UNAVAILABLE,
            )
        return self._parsed(raw)

    def _parsed(self, raw: bytes) -> relay_pb2.RelaySessionResponse:
        try:
            return relay_pb2.RelaySessionResponse.FromString(raw)
        except DecodeError:
            raise self._protocol("sent what is no SessionResponse") from None

    def _protocol(self, what: str) -> AnabranchError:
        return error_for(
            "SESSION_PROTOCOL",
            f"{self._target} {what}",
            grpc.StatusCode.FAILED_PRECONDITION,
            work=Work.NOT_DISPATCHED,
        )

    async def _write(self, call: grpc.aio.StreamStreamCall) -> None:
        session = self._session
        try:
            while True:
                while (message := session.next_message()) is not None:
                    await call.write(message)
                if session.has_finished():
                    break
                session.wake.clear()
                await session.wake.wait()
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the call is over; the reader learns why
        await asyncio.sleep(GOODBYE)
        call.cancel()
