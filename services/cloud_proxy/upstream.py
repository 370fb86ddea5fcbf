"""One attempt at a provider over HTTP: connection, timers, caps, and what each failure means.

Knows HTTP and time; what bytes mean is the receiver's. Repeats and keys are the loop's in
attempts. Addresses come from the routes file alone. Trace context stays here: a provider learns
nothing of who asks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from yarl import URL

from services.chassis.settings import Secret
from services.cloud_proxy.answer import FailureKind, ProviderFailure
from services.cloud_proxy.candidates import Candidate
from services.cloud_proxy.credentials import credential_headers, without_secret
from services.cloud_proxy.dialect_table import reader_for
from services.cloud_proxy.dialects import Framing
from services.cloud_proxy.http_session import Http, drain, read_body
from services.cloud_proxy.rate_limits import RateLimit, read_limits
from services.cloud_proxy.retries import retry_after, should_retry
from services.cloud_proxy.streams import StreamEvent, StreamGarbled, StreamTooLarge

_ERROR_BODY = 64 * 1024
_SLACK = 0.1
# In the order of how many providers use them.
_REQUEST_IDS = ("x-request-id", "request-id", "x-amzn-requestid", "apim-request-id", "cf-ray")


@dataclass(frozen=True, slots=True)
class Timers:
    """Seconds. `first_token` runs from the request's start, headers included; `inter_token` from
    one piece of output to the next, whatever keep-alives come between; `total` over everything."""

    first_token: float = 60.0
    inter_token: float = 30.0
    total: float = 600.0


@dataclass(frozen=True, slots=True)
class Caps:
    """Bytes of a whole response and of one line or event of it."""

    response: int = 64 << 20
    line: int = 1 << 20


class Receiver(Protocol):
    """Takes what one attempt's response holds. Its methods raise ProviderFailure."""

    @property
    def delivered(self) -> int:
        """Pieces of output so far; when it grows there was progress."""

    def events(self, events: list[StreamEvent]) -> bool:
        """More of a stream; whether it is finished, so that nothing more need be read."""

    def body(self, body: bytes) -> None:
        """An answer that came whole."""

    def end(self) -> None:
        """The response is over. Raises when the answer is not complete."""


@dataclass(slots=True)
class Seen:
    """What the headers of a response said, for the trail.

    `heard` is told the rate limits as soon as they are read: they age while an answer streams.
    """

    http_status: int | None = None
    request_id: str = ""
    heard: Callable[[Sequence[RateLimit]], None] | None = None


class Upstream:
    """Asks providers, one attempt at a time."""

    def __init__(self, http: Http, *, timers: Timers, caps: Caps) -> None:
        self._http = http
        self._timers = timers
        self._caps = caps

    async def attempt(
        self, candidate: Candidate, secret: Secret | None, receiver: Receiver, seen: Seen
    ) -> None:
        """Sends the request and feeds `receiver` until the answer is complete.

        Raises ProviderFailure for every other end. Cancelling closes the connection at once.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._timers.total
        first = min(loop.time() + self._timers.first_token, ends)
        try:
            async with asyncio.timeout_at(first) as timer:
                response = await self._post(candidate, secret)
                try:
                    seen.http_status = response.status
                    seen.request_id = _request_id(response)
                    if seen.heard is not None:
                        seen.heard(read_limits(response.headers, time.time()))
                    if response.status != 200:
                        raise await self._refusal(response, candidate, secret)
                    await self._read(response, candidate.encoded.framing, receiver, timer, ends)
                    timer.reschedule(None)
                    await drain(response)
                finally:
                    # Not `release`: unless all was read, the provider must see us leave now.
                    response.close()
        except aiohttp.ClientError as error:
            raise _connection_failure(error, receiver.delivered > 0) from None
        except StreamTooLarge:
            raise ProviderFailure(
                FailureKind.BROKEN, "the provider's response is larger than is sensible"
            ) from None
        except StreamGarbled:
            raise ProviderFailure(
                FailureKind.BROKEN, "the provider's response was cut off or malformed"
            ) from None
        except TimeoutError:
            raise self._timed_out(loop.time() >= ends, receiver.delivered > 0) from None

    async def _post(self, candidate: Candidate, secret: Secret | None) -> aiohttp.ClientResponse:
        route, encoded = candidate.route, candidate.encoded
        url = route.base_url + encoded.path
        headers = credential_headers(route, secret, url, encoded.body)
        return await self._http.session.post(
            # As it is: what is percent-encoded in it is part of a signature.
            URL(url, encoded=True),
            data=encoded.body,
            headers={**encoded.headers, **route.profile.headers, **headers},
            allow_redirects=False,
            proxy=self._http.proxy_for(url),
        )

    async def _read(
        self,
        response: aiohttp.ClientResponse,
        framing: Framing | None,
        receiver: Receiver,
        timer: asyncio.Timeout,
        ends: float,
    ) -> None:
        kind = response.content_type
        if kind == "application/json":
            # Also where a stream was asked for: some gateways answer whole regardless.
            receiver.body(await read_body(response, self._caps.response))
            receiver.end()
            return
        if framing is None or kind != framing:
            raise ProviderFailure(
                FailureKind.BROKEN, "the provider answered with another media type than asked for"
            )
        reader = reader_for(framing, max_line=self._caps.line, max_event=self._caps.line)
        loop = asyncio.get_running_loop()
        received = 0
        progress = 0
        # The timer may be late by this much, so that it need not be moved for every chunk.
        slack = self._timers.inter_token * _SLACK
        lenient = 0.0
        while data := await response.content.readany():
            received += len(data)
            if received > self._caps.response:
                raise StreamTooLarge("the response is over its cap")
            if receiver.events(reader.feed(data)):
                break
            if receiver.delivered != progress:
                # Keep-alives and empty deltas are no progress and do not come here.
                now = loop.time()
                if not progress or now > lenient:
                    lenient = now + slack
                    timer.reschedule(min(now + self._timers.inter_token + slack, ends))
                progress = receiver.delivered
        else:
            receiver.events(reader.close())
        receiver.end()

    async def _refusal(
        self, response: aiohttp.ClientResponse, candidate: Candidate, secret: Secret | None
    ) -> ProviderFailure:
        try:
            body = await read_body(response, _ERROR_BODY)
        except (aiohttp.ClientError, StreamTooLarge):
            # The status alone says enough.
            body = b""
        if secret is not None:
            # Before anything is read from it: a text that is cut short could end within the key.
            body = without_secret(body, secret)
        failure = candidate.dialect.decode_error(response.status, response.headers, body)
        told = retry_after(response.headers, time.time())
        if told is not None:
            failure.retry_after = told
        failure.retry = should_retry(response.headers)
        return failure

    def _timed_out(self, total: bool, delivered: bool) -> ProviderFailure:
        if total:
            what = f"the provider took longer than {self._timers.total:g} s in all"
        elif delivered:
            what = f"the provider sent nothing new for {self._timers.inter_token:g} s"
        else:
            what = f"the provider sent no output within {self._timers.first_token:g} s"
        return ProviderFailure(FailureKind.TIMED_OUT, what)


def _connection_failure(error: aiohttp.ClientError, delivered: bool) -> ProviderFailure:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return ProviderFailure(FailureKind.UNREACHABLE, "the provider could not be reached in time")
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError):
        # Covers names that do not resolve and certificates that do not verify.
        return ProviderFailure(FailureKind.UNREACHABLE, "the provider could not be reached")
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):
        kind = FailureKind.BROKEN if delivered else FailureKind.FAILED
        return ProviderFailure(kind, "the provider closed the connection")
    return ProviderFailure(FailureKind.BROKEN, "the provider's response was cut off or malformed")


def _request_id(response: aiohttp.ClientResponse) -> str:
    """The provider's own id of the request, which its support asks for."""
    for name in _REQUEST_IDS:
        found = response.headers.get(name, "")
        if found:
            return found[:128] if found.isascii() and found.isprintable() else ""
    return ""
