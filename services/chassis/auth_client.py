"""How a service reaches the auth service: verification keys, and tokens for itself.

Finds the address (configured, or through the registry), keeps one channel, and
never lets a caller's request wait for more than a short deadline.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from anabranch.v1 import auth_pb2, auth_pb2_grpc, errors_pb2
from services.chassis.authn import KeySet
from services.chassis.channels import open_channel
from services.chassis.errors import Fault, fault_from_rpc_error
from services.chassis.registry import Registry
from services.chassis.settings import Secret

_log = logging.getLogger(__name__)

AUTH_SERVICE = "anabranch-auth"
_CALL_TIMEOUT_S = 1.0
_LOGIN_TIMEOUT_S = 3.0
_REFRESH_AT = 0.8
_REISSUE_AFTER_S = 5.0


class AuthClient:
    """One channel to the auth service, moved when the registry says so."""

    def __init__(self, target: str, registry: Registry | None) -> None:
        self._target = target
        self._registry = registry
        self._channel: grpc.aio.Channel | None = None
        self._address = ""

    async def follow(self) -> None:
        """Follows the registry until cancelled; returns at once for a configured target."""
        if self._target:
            await self._use(self._target)
            return
        if self._registry is None:
            return
        async for instances in self._registry.watch(AUTH_SERVICE):
            addresses = sorted(instance.address for instance in instances)
            if addresses and self._address not in addresses:
                await self._use(addresses[0])

    def stub(self) -> auth_pb2_grpc.AuthServiceStub:
        """A stub for now. Raises Fault DEPENDENCY_UNAVAILABLE while no address is known."""
        if self._channel is None:
            raise Fault(
                errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
                "the auth service has not been found yet",
                retry_after=1.0,
            )
        return auth_pb2_grpc.AuthServiceStub(self._channel)

    async def fetch(self) -> KeySet:
        """The verification keys. Raises Fault."""
        try:
            found = await self.stub().GetJwks(auth_pb2.GetJwksRequest(), timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise fault_from_rpc_error(error) from error
        return KeySet(
            jwks_json=found.jwks_json,
            max_age=found.max_age.ToNanoseconds() / 1e9,
            revoked_token_ids=frozenset(found.revoked_token_ids),
            disabled_client_ids=frozenset(found.disabled_client_ids),
        )

    async def close(self) -> None:
        """Closes the channel."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def _use(self, address: str) -> None:
        previous, self._channel = self._channel, open_channel(address)
        self._address = address
        if previous is not None:
            # What is under way ends by its own deadline: closing would cancel it, and a
            # cancelled call looks to its caller as if that caller had been cancelled.
            await previous.close(_LOGIN_TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class Token:
    """An access token of this service. `refresh_at` is in monotonic seconds."""

    value: str = field(repr=False)
    refresh_at: float


class TokenSource:
    """This service's own access token, fetched with its client credentials and renewed.

    Concurrent callers share one fetch.
    """

    def __init__(
        self,
        auth: AuthClient,
        client_id: str,
        client_secret: Secret,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._auth = auth
        self._client_id = client_id
        self._client_secret = client_secret
        self._clock = clock
        self._token: Token | None = None
        self._issued_at = float("-inf")
        self._lock = asyncio.Lock()

    async def token(self) -> Token:
        """A token that is not due for renewal. Raises Fault when none can be had."""
        async with self._lock:
            if self._token is None or self._token.refresh_at <= self._clock():
                self._token = await self._issue()
            return self._token

    def was_refused(self, token: Token) -> None:
        """A peer does not take the token: fetch another next time, but not each time."""
        if token is self._token and self._clock() - self._issued_at >= _REISSUE_AFTER_S:
            self._token = None

    async def _issue(self) -> Token:
        request = auth_pb2.IssueTokenRequest(
            client_id=self._client_id, client_secret=self._client_secret.reveal()
        )
        asked = self._clock()
        try:
            issued = await self._auth.stub().IssueToken(request, timeout=_LOGIN_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise fault_from_rpc_error(error) from error
        self._issued_at = asked
        life = issued.expires_in.ToNanoseconds() / 1e9
        return Token(issued.access_token, asked + life * _REFRESH_AT)
