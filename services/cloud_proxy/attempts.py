"""The one loop of attempts: which key, when again, and which provider instead.

Everything below repeats nothing. Nothing is repeated once output was delivered, and what a request
asks is never asked of another provider because it was refused as such.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from services.chassis.errors import Fault
from services.cloud_proxy.answer import FailureKind, ProviderFailure
from services.cloud_proxy.candidates import Candidate
from services.cloud_proxy.keys import Blocked, Key, KeyPool
from services.cloud_proxy.retries import RetryBudget, RetryPolicy, wait_before
from services.cloud_proxy.upstream import Receiver, Seen, Upstream

_log = logging.getLogger(__name__)

# What is wrong with the request is wrong with it everywhere.
_OF_THE_REQUEST = frozenset({FailureKind.REFUSED_REQUEST, FailureKind.TOO_LONG})
_BUSY_COOLING = 1.0


class Attempt:
    """One attempt, as it is told to the exchange; `seconds` once it is over."""

    __slots__ = ("began", "candidate", "failure", "key", "number", "seconds", "seen")

    def __init__(self, candidate: Candidate, key: int, number: int, began: float) -> None:
        self.candidate = candidate
        self.key = key
        self.number = number
        self.began = began
        self.seconds: float | None = None
        self.failure: ProviderFailure | None = None
        self.seen = Seen()


class Exchange(Protocol):
    """The caller's side of one request: it takes output, and is told how attempts go."""

    async def admit(self, candidate: Candidate) -> None:
        """Whether its provider may be asked; raises Fault where not, and it is passed over."""

    def receiver(self, candidate: Candidate) -> Receiver:
        """A fresh one, for one attempt."""

    def attempt_began(self, attempt: Attempt) -> None:
        """One attempt is about to be made."""

    def attempt_ended(self, attempt: Attempt) -> None:
        """One attempt is over."""


class Attempts:
    """Makes attempts until one succeeds or none is left."""

    def __init__(
        self,
        upstream: Upstream,
        pools: Mapping[str, KeyPool],
        *,
        retry: RetryPolicy,
        random: Callable[[], float],
    ) -> None:
        self._upstream = upstream
        self._pools = pools
        self._retry = retry
        self._random = random
        self._budgets: dict[str, RetryBudget] = {}

    async def run(
        self, candidates: Iterable[Candidate], exchange: Exchange, deadline: float
    ) -> None:
        """Asks the candidates in order until one answers.

        `deadline` is in seconds of the loop's clock; no wait goes beyond it. Raises the last
        ProviderFailure, or the first Fault where none was admitted. Cancelling closes the
        provider's connection at once.
        """
        loop = asyncio.get_running_loop()
        failure: ProviderFailure | None = None
        refused: Fault | None = None
        made = 0
        for candidate in candidates:
            try:
                await exchange.admit(candidate)
                await self._ask(candidate, exchange, deadline, made)
            except _Failed as failed:
                failure, made = failed.failure, failed.made
                if failed.delivered or failure.kind in _OF_THE_REQUEST or loop.time() >= deadline:
                    raise failure from None
            except Fault as fault:
                refused = refused or fault
            else:
                return
        if failure is not None:
            raise failure
        if refused is not None:
            raise refused

    async def _ask(
        self, candidate: Candidate, exchange: Exchange, deadline: float, made: int
    ) -> None:
        """All attempts at one provider. Raises _Failed."""
        loop = asyncio.get_running_loop()
        route = candidate.route
        pool = self._pools[route.account]
        budget = self._budgets.setdefault(route.account, RetryBudget())
        budget.earn()
        here = 0
        waited = False
        kept: Key | None = None
        while True:
            key = pool.pick(route.model.name, candidate.tokens, kept)
            if key is None:
                failure = _none_usable(pool, candidate)
                wait = failure.retry_after or 0.0
                if waited or not self._worth_waiting(candidate, wait, deadline):
                    raise _Failed(failure, made, delivered=False)
                # A limit that is about to be lifted is waited for, once.
                waited = True
                await asyncio.sleep(wait)
                continue
            here += 1
            made += 1
            attempt = Attempt(candidate, key.number, made, loop.time())
            receiver = exchange.receiver(candidate)
            failed = await self._attempt(attempt, pool, key, receiver, exchange)
            if failed is None:
                return
            if receiver.delivered:
                raise _Failed(failed, made, delivered=True)
            again = pool.wait(route.model.name, candidate.tokens)
            pause = wait_before(failed, here, self._retry, again, self._random)
            if failed.kind is FailureKind.BUSY and pause and candidate.others:
                # Another provider answers now, so that nobody waits for this one's limit.
                pause = None
            if pause is None or loop.time() + pause >= deadline or not budget.spend():
                raise _Failed(failed, made, delivered=False)
            # A limit is the key's; what else fails is the provider's, whatever key is used.
            kept = key if failed.kind is not FailureKind.BUSY else None
            await asyncio.sleep(pause)

    def _worth_waiting(self, candidate: Candidate, wait: float, deadline: float) -> bool:
        within = asyncio.get_running_loop().time() + wait < deadline
        return not candidate.others and 0 < wait <= self._retry.longest_wait and within

    async def _attempt(
        self, attempt: Attempt, pool: KeyPool, key: Key, receiver: Receiver, exchange: Exchange
    ) -> ProviderFailure | None:
        candidate = attempt.candidate
        model = candidate.route.model.name
        exchange.attempt_began(attempt)
        attempt.seen.heard = lambda limits: pool.observe(key, model, limits)
        with pool.using(key, model, candidate.tokens):
            try:
                await self._upstream.attempt(candidate, key.secret, receiver, attempt.seen)
            except ProviderFailure as failure:
                attempt.failure = failure
            _judge(pool, key, model, attempt.failure)
        attempt.seconds = asyncio.get_running_loop().time() - attempt.began
        exchange.attempt_ended(attempt)
        return attempt.failure


class _Failed(Exception):
    """One provider is out of the question, after so many attempts in all."""

    def __init__(self, failure: ProviderFailure, made: int, *, delivered: bool) -> None:
        super().__init__(failure.cause)
        self.failure = failure
        self.made = made
        self.delivered = delivered


def _judge(pool: KeyPool, key: Key, model: str, failure: ProviderFailure | None) -> None:
    """What an attempt's end says of the key it was made with."""
    if failure is None:
        pool.good(key)
    elif failure.kind is FailureKind.BUSY:
        seconds = failure.retry_after if failure.retry_after is not None else _BUSY_COOLING
        pool.limited(key, model, seconds)
    elif failure.kind is FailureKind.REFUSED_KEY:
        pool.rejected(key)
    elif failure.kind is FailureKind.NO_CREDIT:
        pool.out_of_credit(key)
    elif failure.kind in _OF_THE_REQUEST or failure.kind is FailureKind.MISCONFIGURED:
        # The provider answered: it and the key are well.
        pool.good(key)
    else:
        pool.failed(key)


_WHY = {
    Blocked.LIMITED: (FailureKind.BUSY, "the provider is limiting us"),
    Blocked.REJECTED: (FailureKind.REFUSED_KEY, "the provider refuses every credential we have"),
    Blocked.NO_CREDIT: (FailureKind.NO_CREDIT, "the provider account has no credit left"),
    Blocked.FAILING: (FailureKind.UNREACHABLE, "the provider has been failing, and is left alone"),
}


def _none_usable(pool: KeyPool, candidate: Candidate) -> ProviderFailure:
    """The failure where no key may be used now."""
    model = candidate.route.model.name
    kind, message = _WHY[pool.blocked_by(model, candidate.tokens)]
    wait = pool.wait(model, candidate.tokens)
    return ProviderFailure(kind, message, retry_after=wait)


def log_failure(attempt: Attempt, facts: Mapping[str, object]) -> None:
    """One line for an attempt that failed. Neither prompt nor key is in it."""
    failure = attempt.failure
    if failure is not None:
        _log.warning(
            "attempt failed",
            extra={
                **facts,
                "provider": attempt.candidate.route.profile.name,
                "failure": str(failure.kind),
                "cause": failure.cause,
                "code": failure.code,
                "http_status": failure.http_status,
                "provider_request_id": attempt.seen.request_id,
                "key": attempt.key,
                "ms": round((attempt.seconds or 0.0) * 1000, 1),
            },
        )
