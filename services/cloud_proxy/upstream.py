"""The HTTP client towards providers: one pooled session, its timers, retries and keys.

Knows HTTP and time; what bytes mean is the dialect's. Addresses come from the routes file alone.
Trace context stays here: a provider learns nothing of who asks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from services.cloud_proxy.answer import Delta, Ending, FailureKind, ProviderFailure
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialect_table import reader_for
from services.cloud_proxy.dialects import AnswerDecoder, Dialect, EncodedRequest, Framing
from services.cloud_proxy.http_session import drain, read_body
from services.cloud_proxy.keys import Key, KeyPool
from services.cloud_proxy.retries import (
    RetryBudget,
    RetryPolicy,
    retry_after,
    should_retry,
    wait_before,
)
from services.cloud_proxy.streams import StreamEvent, StreamTooLarge

_ERROR_BODY = 64 * 1024
_REJECTED_COOLING = 30.0
_BUSY_COOLING = 1.0


@dataclass(frozen=True, slots=True)
class Timers:
    """Seconds. `first_token` runs from the request's start, headers included; `inter_token` from
    one piece of output to the next, whatever keep-alives come between; `total` over everything."""

    first_token: float = 60.0
    inter_token: float = 30.0
    total: float = 600.0


@dataclass(frozen=True, slots=True)
class Caps:
    """Bytes of a whole response and of one line of it."""

    response: int = 64 << 20
    line: int = 1 << 20


class Exchange(Protocol):
    """The caller's side of one request: takes output, and is told how attempts went."""

    def decoder(self) -> AnswerDecoder:
        """A fresh decoder; called once an attempt."""

    def deliver(self, delta: Delta) -> None:
        """New output."""

    def conclude(self, ending: Ending) -> None:
        """The answer is complete. Called at most once."""

    def attempt_began(self) -> None:
        """One attempt is about to be made."""

    def attempt_ended(self, seconds: float, failure: ProviderFailure | None) -> None:
        """One attempt is over."""


class Upstream:
    """Asks providers."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        pools: Mapping[str, KeyPool],
        *,
        timers: Timers,
        caps: Caps,
        retry: RetryPolicy,
        random: Callable[[], float],
    ) -> None:
        self._session = session
        self._pools = pools
        self._timers = timers
        self._caps = caps
        self._retry = retry
        self._random = random
        self._budgets: dict[str, RetryBudget] = {}

    async def run(
        self,
        route: Route,
        dialect: Dialect,
        encoded: EncodedRequest,
        exchange: Exchange,
        deadline: float,
    ) -> None:
        """Sends the request, feeding `exchange`; repeats it while nothing was delivered.

        `deadline` is in seconds of the loop's clock; no wait goes beyond it. Raises
        ProviderFailure. Cancelling closes the provider's connection at once.
        """
        loop = asyncio.get_running_loop()
        pool = self._pools[route.account]
        budget = self._budgets.setdefault(route.account, RetryBudget())
        budget.earn()
        attempt = 0
        while True:
            attempt += 1
            key = pool.pick()
            if key is None:
                raise _all_cooling(pool)
            began = loop.time()
            exchange.attempt_began()
            progress = _Progress(exchange)
            try:
                await self._attempt(route, dialect, encoded, key, progress)
            except ProviderFailure as failure:
                exchange.attempt_ended(loop.time() - began, failure)
                _cool(pool, key, failure)
                if progress.delivered:
                    raise
                wait = wait_before(failure, attempt, self._retry, pool.wait(), self._random)
                if wait is None or loop.time() + wait >= deadline or not budget.spend():
                    raise
            else:
                pool.good(key)
                exchange.attempt_ended(loop.time() - began, None)
                return
            await asyncio.sleep(wait)

    async def _attempt(
        self,
        route: Route,
        dialect: Dialect,
        encoded: EncodedRequest,
        key: Key,
        progress: _Progress,
    ) -> None:
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._timers.total
        first = min(loop.time() + self._timers.first_token, ends)
        try:
            async with asyncio.timeout_at(first) as timer:
                response = await self._session.post(
                    route.base_url + encoded.path,
                    data=encoded.body,
                    headers={**encoded.headers, **_credential(route, key)},
                    allow_redirects=False,
                )
                try:
                    if response.status != 200:
                        raise await self._refusal(response, dialect, key)
                    await self._read(response, encoded.framing, progress, timer, ends)
                    timer.reschedule(None)
                    await drain(response)
                finally:
                    # Not `release`: unless all was read, the provider must see us leave now.
                    response.close()
        except aiohttp.ConnectionTimeoutError:
            raise ProviderFailure(
                FailureKind.UNREACHABLE, "the provider could not be reached in time"
            ) from None
        except aiohttp.ClientConnectorError:
            # Covers names that do not resolve and certificates that do not verify.
            raise ProviderFailure(
                FailureKind.UNREACHABLE, "the provider could not be reached"
            ) from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            kind = FailureKind.BROKEN if progress.delivered else FailureKind.FAILED
            raise ProviderFailure(kind, "the provider closed the connection") from None
        except aiohttp.ClientError:
            raise ProviderFailure(
                FailureKind.BROKEN, "the provider's response was cut off or malformed"
            ) from None
        except StreamTooLarge:
            raise ProviderFailure(
                FailureKind.BROKEN, "the provider's response is larger than is sensible"
            ) from None
        except TimeoutError:
            raise self._timed_out(loop.time() >= ends, progress.delivered) from None

    async def _read(
        self,
        response: aiohttp.ClientResponse,
        framing: Framing | None,
        progress: _Progress,
        timer: asyncio.Timeout,
        ends: float,
    ) -> None:
        kind = response.content_type
        if kind == "application/json":
            # Also where a stream was asked for: some gateways answer whole regardless.
            decoder = progress.exchange.decoder()
            progress.deliver(decoder.whole(await read_body(response, self._caps.response)))
            progress.exchange.conclude(decoder.ending())
            return
        if framing is None or kind != framing:
            raise ProviderFailure(
                FailureKind.BROKEN, "the provider answered with another media type than asked for"
            )
        decoder = progress.exchange.decoder()
        reader = reader_for(framing, max_line=self._caps.line, max_event=self._caps.line)
        loop = asyncio.get_running_loop()
        received = 0
        while data := await response.content.readany():
            received += len(data)
            if received > self._caps.response:
                raise StreamTooLarge("the response is over its cap")
            before = progress.delivered
            if _feed(reader.feed(data), decoder, progress):
                break
            if progress.delivered != before:
                # Keep-alives and empty deltas are no progress and do not come here.
                timer.reschedule(min(loop.time() + self._timers.inter_token, ends))
        else:
            _feed(reader.close(), decoder, progress)
        progress.exchange.conclude(decoder.ending())

    async def _refusal(
        self, response: aiohttp.ClientResponse, dialect: Dialect, key: Key
    ) -> ProviderFailure:
        try:
            body = await read_body(response, _ERROR_BODY)
        except (aiohttp.ClientError, StreamTooLarge):
            # The status alone says enough.
            body = b""
        if key.secret is not None:
            # Before anything is read from it: a text that is cut short could end within the key.
            body = body.replace(key.secret.reveal().encode(), b"***")
        failure = dialect.decode_error(response.status, response.headers, body)
        stated = retry_after(response.headers, time.time())
        # Headers first; some providers say it in the body, which the dialect has read.
        failure.retry_after = failure.retry_after if stated is None else stated
        failure.retry = should_retry(response.headers)
        return failure

    def _timed_out(self, total: bool, delivered: int) -> ProviderFailure:
        if total:
            what = f"the provider took longer than {self._timers.total:g} s in all"
        elif delivered:
            what = f"the provider sent nothing new for {self._timers.inter_token:g} s"
        else:
            what = f"the provider sent no output within {self._timers.first_token:g} s"
        return ProviderFailure(FailureKind.TIMED_OUT, what)


class _Progress:
    """Counts what one attempt has delivered."""

    __slots__ = ("delivered", "exchange")

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.delivered = 0

    def deliver(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            self.delivered += 1
            self.exchange.deliver(delta)


def _feed(events: list[StreamEvent], decoder: AnswerDecoder, progress: _Progress) -> bool:
    """Decodes and delivers; whether the terminal marker was among the events."""
    for event in events:
        progress.deliver(decoder.event(event))
        if decoder.done:
            return True
    return False


def _credential(route: Route, key: Key) -> dict[str, str]:
    if key.secret is None or route.profile.auth_scheme == "none":
        return {}
    if route.profile.auth_scheme == "header":
        return {route.profile.auth_header: key.secret.reveal()}
    return {"Authorization": f"Bearer {key.secret.reveal()}"}


def _cool(pool: KeyPool, key: Key, failure: ProviderFailure) -> None:
    if failure.kind is FailureKind.BUSY:
        pool.cool(key, failure.retry_after if failure.retry_after is not None else _BUSY_COOLING)
    elif failure.kind in (FailureKind.REFUSED_KEY, FailureKind.NO_CREDIT):
        pool.cool(key, _REJECTED_COOLING, rejected=True)


def _all_cooling(pool: KeyPool) -> ProviderFailure:
    if pool.all_rejected():
        return ProviderFailure(
            FailureKind.REFUSED_KEY,
            "the provider refuses every credential we have",
            retry_after=pool.wait(),
        )
    return ProviderFailure(FailureKind.BUSY, "the provider is limiting us", retry_after=pool.wait())
