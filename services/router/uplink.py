"""The router's session to one backend: kept open, renewed, and mourned when it breaks.

What passes on it is session_requests.py's. It decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from functools import partial

import grpc
from google.protobuf.message import DecodeError

from anabranch.v1 import errors_pb2, relay_pb2
from services.chassis.auth_client import Token, TokenSource
from services.chassis.channels import DEFAULT_MAX_MESSAGE_BYTES, transport_limits
from services.chassis.errors import Fault, fault_from_rpc_error, fault_of
from services.chassis.http2.client import ClientCall, connect
from services.chassis.http2.frames import Code
from services.chassis.registry import Instance
from services.chassis.tls import Tls
from services.chassis.turn import Soon, turn_of
from services.router.backend_channel import BackendChannel
from services.router.core.prefix import PrefixIndex
from services.router.core.values import Health
from services.router.known_backend import KnownBackend
from services.router.refusals import backend_lost
from services.router.session_requests import SessionRequests

_log = logging.getLogger(__name__)

SESSION_METHOD = "/anabranch.v1.ModelService/Session"
_READY_TIMEOUT_S = 10.0
_UNREADABLE = "the backend sent a message that cannot be read"
_BACKOFF_S = (0.05, 2.0)
_RENEW_RETRY_S = 2.0
# A message beyond what a backend takes ends the session, and with it every other request.
MAX_START_BYTES = DEFAULT_MAX_MESSAGE_BYTES - 64 * 1024
# Small calls on the channel of a backend that leaves get this long to end.
_CLOSE_GRACE_S = 10.0


class Uplink:
    """The session to one backend, and the requests on it."""

    def __init__(
        self,
        instance: Instance,
        tokens: TokenSource,
        on_change: Callable[[], None],
        clock: Callable[[], float],
        jitter: random.Random,
        prefixes: PrefixIndex,
        tls: Tls | None = None,
    ) -> None:
        self.backend = KnownBackend(instance, on_change, clock)
        self._address = instance.address
        # A certificate proves a service, so that a backend may be at any address.
        self._identity = None if tls is None else partial(tls.expecting, instance.service)
        self._channel = BackendChannel(instance, tls, _CLOSE_GRACE_S)
        self.listed = True
        self._over = False
        self._tokens = tokens
        self._clock = clock
        self._jitter = jitter
        self._renewal = ""
        self._refused = asyncio.Event()
        self._call: ClientCall | None = None
        self._loop = asyncio.get_running_loop()
        self._flush_soon = Soon(self._flush, turn_of(self._loop))
        self.requests = SessionRequests(
            self.backend, prefixes, self._flush_soon.set, self._leave_if_idle, self._refused.set
        )

    @property
    def channel(self) -> grpc.aio.Channel:
        """For a single call that begins now."""
        return self._channel.current()

    def end_if_silent(self) -> None:
        """Gives the session up when its backend has work and brings no token for too long.

        What ran there goes on elsewhere, as after any loss.
        """
        if self._call is not None and self.backend.is_silent(self.requests.decoding):
            _log.warning("backend has fallen silent", extra={"backend": self.backend.id})
            self._call.fail(grpc.StatusCode.UNAVAILABLE, "it brought no token for too long")

    def unlist(self) -> None:
        """The registry no longer lists it: nothing new, and close once it is idle."""
        self.listed = False
        if self.backend.health is Health.READY:
            self.backend.set_health(Health.DRAINING, "left the registry")
        self._leave_if_idle()

    def relist(self) -> bool:
        """The registry lists it again; false when it is too late and takes a new uplink."""
        if self._over:
            return False
        if not self.listed:
            self.listed = True
            draining = self.backend.health is Health.DRAINING and not self.backend.leaving
            if draining and self._call is not None:
                self.backend.set_health(Health.READY, "")
        return True

    async def run(self) -> None:
        """Keeps a session open until cancelled, or until unlisted and idle."""
        attempt = 0
        try:
            while self.listed:
                fault = await self._one_session()
                greeted = self.backend.health in (Health.READY, Health.DRAINING)
                attempt = 0 if greeted else attempt + 1
                self._session_over(fault)
                low, high = _BACKOFF_S
                delay = min(low * 2 ** min(attempt, 10), high)
                await asyncio.sleep(delay * (0.5 + self._jitter.random()))
        finally:
            self._over = True
            self._session_over(backend_lost("its session was closed"))
            await self._channel.close()

    async def _one_session(self) -> Fault:
        """Runs one session to its end and says why it ended."""
        try:
            token = await self._tokens.token()
        except Fault as no_token:
            return no_token
        limits = transport_limits(calling=True)
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                connection = await connect(
                    self._address, limits, self._identity() if self._identity else None
                )
        except TimeoutError:
            return backend_lost("the backend could not be reached in time")
        except OSError as unreachable:
            return backend_lost(
                f"the backend cannot be reached: {unreachable.strerror or unreachable}"
            )
        greeted: asyncio.Future[None] = self._loop.create_future()
        metadata = (("authorization", f"Bearer {token.value}"),)
        call = connection.call(
            SESSION_METHOD, metadata, lambda raw: self._greeting(call, greeted, raw)
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                renewal = tasks.create_task(self._renew(token))
                fault = await self._until_over(call, greeted)
                renewal.cancel()
            if fault.reason == errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED:
                self._tokens.was_refused(token)
            return fault
        except ExceptionGroup as group:
            return fault_of(group.exceptions[0])
        finally:
            self._call = None
            call.cancel()
            connection.close(Code.NO_ERROR, "the session is over")

    async def _until_over(self, call: ClientCall, greeted: asyncio.Future[None]) -> Fault:
        await asyncio.wait(
            (greeted, call.ended),
            timeout=_READY_TIMEOUT_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not greeted.done() and not call.ended.done():
            return backend_lost("the backend did not greet in time")
        error = await call.ended
        if error is None:
            return backend_lost("the backend closed the session")
        if error.code() is grpc.StatusCode.CANCELLED:
            return backend_lost("left the registry")  # it may be listed again by now
        return fault_from_rpc_error(error)

    def _greeting(self, call: ClientCall, greeted: asyncio.Future[None], raw: bytes) -> None:
        try:
            message = relay_pb2.RelaySessionResponse.FromString(raw)
        except DecodeError:
            call.fail(grpc.StatusCode.INTERNAL, _UNREADABLE)
            return
        greeted.set_result(None)
        self._call = call
        call.on_message = self._message
        self.requests.begin(message.ready)
        _log.info("backend is ready", extra={"backend": self.backend.id})

    def _message(self, raw: bytes) -> None:
        try:
            self.requests.take(raw)
        except DecodeError:
            if self._call is not None:
                self._call.fail(grpc.StatusCode.INTERNAL, _UNREADABLE)

    def _session_over(self, fault: Fault) -> None:
        lost = len(self.requests)
        if lost or self.backend.health is Health.READY:
            extra = {"backend": self.backend.id, "cause": fault.message, "lost": lost}
            _log.warning("session to backend ended", extra=extra)
        self.requests.lose(fault)

    def _leave_if_idle(self) -> None:
        if not self.listed and not self.requests and self._call is not None:
            self._call.cancel()

    def _flush(self) -> None:
        """Sends what was put on the session within one turn of the loop, in one message."""
        if self._call is None or self._call.ended.done():
            return  # the session is over: every request on it is told why
        outgoing = self.requests.outgoing
        frames = outgoing.take()
        if outgoing:
            self._flush_soon.set()
        renewal, self._renewal = self._renewal, ""
        if frames or renewal:
            message = relay_pb2.RelaySessionRequest(frames=frames, authorization=renewal)
            self._call.send(message.SerializeToString())

    async def _renew(self, token: Token) -> None:
        """Keeps the session's credential alive in band: before it ends, and once it is refused.

        A token dies early when its signing key is withdrawn; the session would go on without use.
        """
        self._refused.clear()
        refresh_at = token.refresh_at
        while True:
            try:
                async with asyncio.timeout(max(refresh_at - self._clock(), 0.0)):
                    await self._refused.wait()
                self._refused.clear()
                self._tokens.was_refused(token)
            except TimeoutError:
                pass  # it is due
            try:
                token = await self._tokens.token()
            except Fault as fault:
                _log.warning("own token could not be renewed", extra={"cause": fault.message})
                # Refusals do not shorten this: each request that fails meanwhile is one.
                await asyncio.sleep(_RENEW_RETRY_S)
                refresh_at = self._clock()
                continue
            refresh_at = token.refresh_at
            self._renewal = f"Bearer {token.value}"
            self._flush_soon.set()
