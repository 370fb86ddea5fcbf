"""How a service reaches the auth service: verification keys, and tokens for itself.

Finds the address (configured, or through the registry), keeps one connection, and
never lets a caller's request wait for more than a short deadline.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from anabranch.v1 import auth_pb2, errors_pb2
from services.chassis.authn import KeySet
from services.chassis.channels import transport_limits
from services.chassis.errors import Fault, fault_from_rpc_error
from services.chassis.http2.single_calls import SingleCalls
from services.chassis.registry import Registry
from services.chassis.settings import Secret
from services.chassis.tls import Tls

_log = logging.getLogger(__name__)

AUTH_SERVICE = "anabranch-auth"
_METHODS = "/anabranch.v1.AuthService/"
_CALL_TIMEOUT_S = 1.0
_LOGIN_TIMEOUT_S = 3.0
_REFRESH_AT = 0.8
_REISSUE_AFTER_S = 5.0

_Answer = TypeVar("_Answer", bound=Message)


# What another instance may do better.
_ELSEWHERE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


class AuthClient:
    """One connection to the auth service, moved when the registry says so, or when it fails.

    Of several instances each process prefers another one, so that they share the work. With `tls`,
    whoever is there must prove to be the auth service.
    """

    def __init__(self, target: str, registry: Registry | None, tls: Tls | None = None) -> None:
        self._target = target
        self._registry = registry
        self._identity = None if tls is None else partial(tls.expecting, AUTH_SERVICE)
        self._calls: SingleCalls | None = None
        self._address = ""
        self._known: tuple[str, ...] = ()
        self._own = secrets.token_bytes(8)
        self._farewells: set[asyncio.Task[None]] = set()

    async def follow(self) -> None:
        """Follows the registry until cancelled; returns at once for a configured target."""
        if self._target:
            self._use(self._target)
            return
        if self._registry is None:
            return
        async for instances in self._registry.watch(AUTH_SERVICE):
            # Once an instance is known it is kept while all are away: it may be the first back.
            self._known = tuple(sorted((i.address for i in instances), key=self._rank))
            if self._known and self._address not in self._known:
                self._use(self._known[0])

    @property
    def found(self) -> bool:
        """Whether an address is known."""
        return self._calls is not None

    async def fetch(self, known_version: str = "", wait: float = 0.0) -> KeySet:
        """The verification keys, see KeySource. Raises Fault."""
        request = auth_pb2.GetJwksRequest(known_version=known_version)
        request.wait.FromNanoseconds(round(wait * 1e9))
        raw = await self._ask("GetJwks", request, timeout=wait + _CALL_TIMEOUT_S)
        found = _read(auth_pb2.GetJwksResponse, raw)
        return KeySet(
            jwks_json=found.jwks_json,
            max_age=found.max_age.ToNanoseconds() / 1e9,
            revoked_token_ids=frozenset(found.revoked_token_ids),
            disabled_client_ids=frozenset(found.disabled_client_ids),
            revoked_api_key_ids=frozenset(found.revoked_api_key_ids),
            version=found.version,
        )

    async def issue(self, request: auth_pb2.IssueTokenRequest) -> auth_pb2.IssueTokenResponse:
        """A token for client credentials. Raises Fault."""
        raw = await self._ask("IssueToken", request, timeout=_LOGIN_TIMEOUT_S)
        return _read(auth_pb2.IssueTokenResponse, raw)

    async def exchange(self, api_key: str) -> str:
        """A token for an API key, see KeyExchange. Raises Fault."""
        request = auth_pb2.ExchangeApiKeyRequest(api_key=api_key)
        raw = await self._ask("ExchangeApiKey", request, timeout=_CALL_TIMEOUT_S)
        return _read(auth_pb2.ExchangeApiKeyResponse, raw).access_token

    async def close(self) -> None:
        """Closes the connection."""
        if self._calls is not None:
            await self._calls.close()
            self._calls = None
        if self._farewells:
            await asyncio.wait(self._farewells)

    async def _ask(self, method: str, request: Message, *, timeout: float) -> bytes:
        if self._calls is None:
            raise Fault(
                errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
                "the auth service has not been found yet",
                retry_after=1.0,
            )
        asked = self._address
        try:
            raw = request.SerializeToString()
            return await self._calls.ask(f"{_METHODS}{method}", raw, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _ELSEWHERE:
                raise fault_from_rpc_error(error) from error
            self._leave(asked)
            # Where it is, and how it failed, is no caller's affair.
            _log.debug("no answer", extra={"asked": asked, "cause": error.details()})
            raise Fault(
                errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
                "the auth service does not answer",
                retry_after=1.0,
            ) from error

    def _leave(self, failed: str) -> None:
        """Prefers the next instance to one that failed, if nobody has gone there already."""
        if failed != self._address or failed not in self._known or len(self._known) < 2:
            return
        self._use(self._known[(self._known.index(failed) + 1) % len(self._known)])

    def _rank(self, address: str) -> bytes:
        """The order in which this process prefers instances: rendezvous hashing."""
        return hashlib.sha256(self._own + address.encode()).digest()

    def _use(self, address: str) -> None:
        limits = transport_limits(calling=True)
        previous, self._calls = self._calls, SingleCalls(address, limits, self._identity)
        self._address = address
        if previous is not None:
            # What is under way ends by its own deadline.
            farewell = asyncio.create_task(previous.close(_LOGIN_TIMEOUT_S), name="auth-farewell")
            self._farewells.add(farewell)
            farewell.add_done_callback(self._farewells.discard)


def _read(kind: type[_Answer], raw: bytes) -> _Answer:
    try:
        return kind.FromString(raw)
    except DecodeError as exc:
        raise Fault(
            errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
            "the auth service sent an answer that cannot be read",
        ) from exc


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
        issued = await self._auth.issue(request)
        self._issued_at = asked
        life = issued.expires_in.ToNanoseconds() / 1e9
        return Token(issued.access_token, asked + life * _REFRESH_AT)
