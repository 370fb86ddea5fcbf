"""Where the credential of a call comes from: nowhere, a fixed token, or the auth service.

Only obtains and renews; who sends it is the client's and the session's affair.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Protocol

import grpc

from anabranch.dial import Dial
from anabranch.errors import AnabranchError, error_from_rpc
from anabranch.v1 import auth_pb2, auth_pb2_grpc
from anabranch.wire import seconds

logger = logging.getLogger(__name__)

RENEW_AT = 0.8
"""Share of a token's life after which the next one is fetched."""


class TokenSource(Protocol):
    """Gives the value of the `authorization` metadata; empty means none."""

    async def authorization(self) -> str:
        """A credential that is good now. Raises AnabranchError."""
        ...

    async def after(self, authorization: str) -> str:
        """Waits until there is a newer credential than this one. May wait for ever."""
        ...

    def reject(self, authorization: str) -> bool:
        """Hears that a service refused this one; True when a newer one can be had."""
        ...

    async def close(self) -> None:
        """Stops renewing."""
        ...


class FixedToken:
    """A token or API key that never changes; the empty one stands for no credential."""

    def __init__(self, token: str = "") -> None:
        """Raises ValueError, which does not quote it, when it cannot be sent as metadata."""
        if not token.isascii() or (token and not token.isprintable()):
            # gRPC would fail each call with an error that names no cause.
            raise ValueError("the token is damaged: it holds line breaks or other characters")
        bearer = token if not token or token.lower().startswith("bearer ") else f"Bearer {token}"
        self._authorization = bearer

    def __repr__(self) -> str:
        return "FixedToken(***)"

    async def authorization(self) -> str:
        """The token."""
        return self._authorization

    async def after(self, authorization: str) -> str:
        """Waits for ever, unless another token is asked about."""
        if authorization == self._authorization:
            await asyncio.get_running_loop().create_future()
        return self._authorization

    def reject(self, authorization: str) -> bool:
        """There is no other."""
        return False

    async def close(self) -> None:
        """Nothing runs."""


class ClientCredentials:
    """Tokens of AuthService.IssueToken, fetched once for everybody who waits.

    The next token is fetched at 80 % of the life of the current one, with jitter so that a
    fleet does not renew in step. A failed renewal leaves the current token in use until it
    expires. `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        dial: Dial,
        target: str,
        client_id: str,
        client_secret: str,
        *,
        timeout: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._dial = dial
        self._target = target
        self._client_id = client_id
        self._client_secret = client_secret
        self._timeout = timeout
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - jitter, no secret
        self._authorization = ""
        self._expires_at = 0.0
        self._renew_at = 0.0
        self._fetching: asyncio.Task[str] | None = None

    def __repr__(self) -> str:
        return f"ClientCredentials(client_id={self._client_id!r}, client_secret=***)"

    async def authorization(self) -> str:
        """The current token, after fetching one if there is none that is good.

        Raises AuthenticationError when the credentials are refused and UnavailableError when
        the auth service cannot be reached.
        """
        now = self._clock()
        if now >= self._expires_at:
            return await self._fetch()
        if now >= self._renew_at:
            self._begin().add_done_callback(_hear_failure)
        return self._authorization

    async def after(self, authorization: str) -> str:
        """Waits until renewal is due, and renews until it succeeds."""
        while authorization == self._authorization:
            await asyncio.sleep(max(0.0, self._renew_at - self._clock()))
            if authorization != self._authorization or self._clock() < self._renew_at:
                continue
            try:
                await self._fetch()
            except AnabranchError as error:
                logger.warning("token renewal failed: %s", error)
                await asyncio.sleep(self._rng.uniform(1.0, 5.0))
        return self._authorization

    def reject(self, authorization: str) -> bool:
        """Drops the token if it is still the current one."""
        if authorization == self._authorization:
            self._expires_at = self._renew_at = 0.0
        return True

    async def close(self) -> None:
        """Gives up a fetch in progress."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])

    async def _fetch(self) -> str:
        return await asyncio.shield(self._begin())

    def _begin(self) -> asyncio.Task[str]:
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._issue(), name="anabranch-token")
        return self._fetching

    async def _issue(self) -> str:
        asked_at = self._clock()
        channel = self._dial()
        try:
            issued = await auth_pb2_grpc.AuthServiceStub(channel).IssueToken(
                auth_pb2.IssueTokenRequest(
                    grant_type="client_credentials",
                    client_id=self._client_id,
                    client_secret=self._client_secret,
                ),
                timeout=self._timeout,
            )
        except grpc.aio.AioRpcError as error:
            # The next attempt of a background renewal waits a little, whoever asks for it.
            self._renew_at = self._clock() + self._rng.uniform(1.0, 5.0)
            raise error_from_rpc(error, self._target) from None
        finally:
            await channel.close()
        life = seconds(issued.expires_in)
        self._authorization = f"Bearer {issued.access_token}"
        self._expires_at = asked_at + life
        self._renew_at = asked_at + life * (RENEW_AT - self._rng.uniform(0.0, 0.1))
        return self._authorization


def _hear_failure(task: asyncio.Task[str]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("token renewal failed, the current one stays in use: %s", error)
