"""The blocking client of the auth service, for administrators: the contract's own messages.

    with AuthAdmin("auth:50054", client_id="admin", client_secret=secret) as auth:
        answer = auth.stub.CreateClient(auth_pb2.CreateClientRequest(...))

Adds the credential and translates errors, and decides nothing. What the messages mean is told in
protos/anabranch/v1/auth.proto. Reads no environment, except in from_env.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import grpc

from anabranch import api_keys
from anabranch.dial import ChannelOptions, Dial, dialler
from anabranch.environment import auth_arguments
from anabranch.errors import AuthenticationError, error_from_rpc
from anabranch.loop_thread import LoopThread
from anabranch.tokens import RENEW_AT, ClientCredentials, FixedToken, TokenSource
from anabranch.v1 import auth_pb2, auth_pb2_grpc
from anabranch.wire import seconds

DEFAULT_TIMEOUT = 30.0
LARGEST_PAGE = 1000


class ExchangedApiKey:
    """Tokens for an API key, which is sent to the auth service alone."""

    def __init__(self, dial: Dial, target: str, api_key: str, *, timeout: float = 5.0) -> None:
        """Raises ValueError when the key was not copied whole."""
        if wrong := api_keys.fault(api_key):
            raise ValueError(f"the API key is damaged: {wrong}")
        self._dial = dial
        self._target = target
        self._api_key = api_key
        self._timeout = timeout
        self._authorization = ""
        self._renew_at = 0.0
        self._alone = asyncio.Lock()

    def __repr__(self) -> str:
        return f"ExchangedApiKey({api_keys.public_id(self._api_key)!r})"

    async def authorization(self) -> str:
        """The current token, after an exchange if there is none that is good."""
        async with self._alone:
            if time.monotonic() >= self._renew_at:
                await self._exchange()
            return self._authorization

    async def after(self, authorization: str) -> str:
        """Waits until renewal is due, and renews."""
        current = await self.authorization()
        if current == authorization:
            await asyncio.sleep(max(0.0, self._renew_at - time.monotonic()))
            current = await self.authorization()
        return current

    def reject(self, authorization: str) -> bool:
        """Drops the token if it is still the current one."""
        if authorization == self._authorization:
            self._renew_at = 0.0
        return True

    async def close(self) -> None:
        """Nothing runs."""

    async def _exchange(self) -> None:
        asked_at = time.monotonic()
        channel = self._dial()
        try:
            issued = await auth_pb2_grpc.AuthServiceStub(channel).ExchangeApiKey(
                auth_pb2.ExchangeApiKeyRequest(api_key=self._api_key), timeout=self._timeout
            )
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, self._target) from None
        finally:
            await channel.close()
        self._authorization = f"Bearer {issued.access_token}"
        self._renew_at = asked_at + seconds(issued.expires_in) * RENEW_AT


class AuthAdmin:
    """A blocking client of AuthService. Its `stub` has the contract's RPCs as methods.

    target: host:port of the auth service. Credentials: `client_id` and `client_secret`, or
    `token`, which is a JWT or an API key; none of them for what is public. credentials: TLS, see
    grpc.ssl_channel_credentials; None is plaintext. timeout: seconds that a call may take.

    Opens nothing before the first call. Close it, best with `with`. Every call raises
    AnabranchError. As Client, it is not for use inside an event loop or after a fork.
    """

    def __init__(
        self,
        target: str,
        *,
        client_id: str | None = None,
        client_secret: str | None = None,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        channel_options: ChannelOptions = (),
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        if bool(client_id) != bool(client_secret):
            raise ValueError("client_id and client_secret belong together")
        if client_id and token:
            raise ValueError("give either a token or client_id and client_secret")
        self._target = target
        self._dial = dialler(target, credentials, channel_options)
        self._timeout = timeout
        self._client_id = client_id or ""
        self._client_secret = client_secret or ""
        self._token = token or ""
        self._tokens = self._token_source()
        self._channel: grpc.aio.Channel | None = None
        self._loop = LoopThread()
        self.stub: Any = auth_pb2_grpc.AuthServiceStub(_Calls(self._method))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **arguments: Any) -> Self:
        """Reads ANABRANCH_AUTH_TARGET and its companions, see anabranch.environment.

        Keyword arguments win over the environment. Raises ValueError when it contradicts itself
        or names no auth service.
        """
        return cls(**auth_arguments(environ, **arguments))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._target!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. May be repeated."""
        try:
            if not self._loop.released:
                self._loop.run(self._close())
        finally:
            self._loop.release()

    @property
    def authenticates(self) -> bool:
        """Whether calls carry a credential."""
        return bool(self._client_id or self._token)

    def pages(self, method: Callable[[Any], Any], request: Any) -> Iterator[Any]:
        """Every answer of a listing RPC of the stub, page after page; `request` is changed."""
        while True:
            answer = method(request)
            yield answer
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    def issue_token(
        self, *scopes: str
    ) -> auth_pb2.IssueTokenResponse | auth_pb2.ExchangeApiKeyResponse:
        """A token for this client's own credentials; with `scopes` for those alone.

        Raises ValueError when there is no secret or API key to issue one for, or an API key and
        scopes.
        """
        if self._client_id:
            return self.stub.IssueToken(  # type: ignore[no-any-return]
                auth_pb2.IssueTokenRequest(
                    grant_type="client_credentials",
                    client_id=self._client_id,
                    client_secret=self._client_secret,
                    scopes=scopes,
                )
            )
        if not self._token.startswith(api_keys.PREFIX):
            raise ValueError("a token is issued for a client's id and secret, or for an API key")
        if scopes:
            raise ValueError("a token for an API key grants what the key does: leave out scopes")
        return self.stub.ExchangeApiKey(  # type: ignore[no-any-return]
            auth_pb2.ExchangeApiKeyRequest(api_key=self._token)
        )

    def _token_source(self) -> TokenSource:
        if self._client_id:
            return ClientCredentials(self._dial, self._target, self._client_id, self._client_secret)
        if self._token.startswith(api_keys.PREFIX):
            return ExchangedApiKey(self._dial, self._target, self._token)
        return FixedToken(self._token)

    def _method(self, path: str, **serializers: Any) -> Callable[[Any], Any]:
        """What the stub calls for the RPC at `path`."""

        def method(request: Any) -> Any:
            return self._loop.run(self._call(path, request, serializers))

        return method

    async def _call(self, path: str, request: Any, serializers: Mapping[str, Any]) -> Any:
        if path.rpartition("/")[2] in _PUBLIC:
            return await self._call_once(path, request, serializers, "")
        authorization = await self._tokens.authorization()
        try:
            return await self._call_once(path, request, serializers, authorization)
        except AuthenticationError:
            # Refused at the door: nothing was done, so even what is not idempotent may go again.
            if not authorization or not self._tokens.reject(authorization):
                raise
        authorization = await self._tokens.authorization()
        return await self._call_once(path, request, serializers, authorization)

    async def _call_once(
        self, path: str, request: Any, serializers: Mapping[str, Any], authorization: str
    ) -> Any:
        if self._channel is None:
            self._channel = self._dial()
        metadata = [("authorization", authorization)] if authorization else []
        call = self._channel.unary_unary(path, **serializers)
        try:
            return await call(request, timeout=self._timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, self._target) from None

    async def _close(self) -> None:
        await self._tokens.close()
        if self._channel is not None:
            await self._channel.close()


_PUBLIC = frozenset({"IssueToken", "ExchangeApiKey", "GetJwks"})
"""What needs no credential, and so none is fetched for."""


class _Calls:
    """The part of a channel that a generated stub uses, with other calls behind it."""

    def __init__(self, method: Callable[..., Callable[[Any], Any]]) -> None:
        self._method = method

    def unary_unary(self, path: str, **serializers: Any) -> Callable[[Any], Any]:
        """The callable for one RPC."""
        return self._method(path, **serializers)
