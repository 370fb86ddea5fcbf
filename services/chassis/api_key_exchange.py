"""Exchanges API keys for tokens, once for everybody who sends the same key at the same time.

A key that was refused is remembered for a while, so that who sends it again costs the auth service
nothing. Keys are known by their SHA-256 here, whole: never by a part, which others may share.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from anabranch.api_keys import is_well_formed
from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from services.chassis.principal import rejected

REFUSED_FOR_S = 5.0
"""How long a refused key is refused without asking; a new key is asked for at once."""

_MOST_REFUSED = 10_000
_MOST_AT_ONCE = 64


class KeyExchange(Protocol):
    """Who turns an API key into an access token."""

    async def exchange(self, api_key: str) -> str:
        """A signed token. Raises Fault: CREDENTIAL_REJECTED, or why it cannot be said."""


class ApiKeyTokens:
    """The tokens of the API keys that callers send here. Belongs to one event loop."""

    def __init__(self, exchange: KeyExchange, monotonic: Callable[[], float]) -> None:
        self._exchange = exchange
        self._now = monotonic
        self._under_way: dict[bytes, asyncio.Task[str]] = {}
        self._refused: OrderedDict[bytes, float] = OrderedDict()

    async def token(self, api_key: str, digest: bytes) -> str:
        """A token for the key; `digest` is the SHA-256 of the whole key. Raises Fault."""
        until = self._refused.get(digest)
        if until is not None and self._now() < until:
            raise rejected()
        if not is_well_formed(api_key):
            raise rejected()
        asking = self._under_way.get(digest)
        if asking is None:
            if len(self._under_way) >= _MOST_AT_ONCE:
                raise Fault(
                    errors_pb2.ERROR_REASON_OVERLOADED,
                    "too many API keys are being checked at once",
                    retry_after=0.5,
                )
            asking = asyncio.create_task(self._exchange.exchange(api_key), name="api-key")
            self._under_way[digest] = asking
            asking.add_done_callback(lambda done: self._settle(digest, done))
        try:
            # Whoever leaves does not end it for the others.
            return await asyncio.shield(asking)
        except Fault as fault:
            if fault.reason == errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED:
                raise rejected() from fault  # in the words for every other bad credential
            raise

    async def close(self) -> None:
        """Gives up what is under way."""
        asking = tuple(self._under_way.values())
        for task in asking:
            task.cancel()
        if asking:
            await asyncio.wait(asking)

    def _settle(self, digest: bytes, done: asyncio.Task[str]) -> None:
        del self._under_way[digest]
        failure = None if done.cancelled() else done.exception()
        if (
            isinstance(failure, Fault)
            and failure.reason == errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED
        ):
            self._refused[digest] = self._now() + REFUSED_FOR_S
            if len(self._refused) > _MOST_REFUSED:
                self._refused.popitem(last=False)
