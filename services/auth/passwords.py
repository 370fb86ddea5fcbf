"""Makes client secrets and checks them against argon2id hashes, off the event loop.

It knows no clients; login.py decides what a wrong secret means.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault

T = TypeVar("T")

PREFIX = "abs_"
"""Lets secret scanners recognise one in a repository or a log."""

_RANDOM_BYTES = 32
_MOST_SEEN = 10_000
# OWASP's smallest recommended parameters: the secrets are 256 random bits, which
# no guessing reaches, so a dearer hash would serve only those who flood logins.
_MEMORY_KIB = 19 * 1024
_PASSES = 2


def new_secret() -> str:
    """A fresh client secret: the prefix and 43 characters of base64url, 256 random bits."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


class Passwords:
    """Hashes on `threads` threads, and refuses when `waiting` requests are already queued.

    A context manager: leaving it waits for hashes that are under way.
    """

    def __init__(self, *, threads: int = 2, waiting: int = 64) -> None:
        self._hasher = PasswordHasher(time_cost=_PASSES, memory_cost=_MEMORY_KIB, parallelism=1)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="argon2")
        self._limit = threads + waiting
        self._in_flight = 0
        # Right pairs of hash and secret, themselves as a keyed hash that only this process can
        # make. A secret that is replaced has another hash, so it is never found here.
        self._seen_key = secrets.token_bytes(32)
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        # Checked when there is no hash to check, so that a login takes as long
        # whether the client exists or not.
        self._decoy = self._hasher.hash(new_secret())

    def __enter__(self) -> Passwords:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def hash(self, secret: str) -> str:
        """The argon2id encoding. Raises Fault (OVERLOADED) when too many are waiting."""
        return await self._in_thread(lambda: self._hasher.hash(secret))

    async def matches(self, secret_hash: str | None, secret: str) -> bool:
        """Whether the secret belongs to the hash; never, and as slowly, when there is none.

        A pair that was right before is right at once: the hash guards what is stored, and the
        secret's owner logs in every few minutes. Raises Fault (OVERLOADED) when too many are
        waiting.
        """
        known = secret_hash if secret_hash is not None else self._decoy
        seen = hmac.new(self._seen_key, f"{known}|{secret}".encode(), hashlib.sha256).digest()
        if seen in self._seen:
            self._seen.move_to_end(seen)
            return secret_hash is not None
        right = await self._in_thread(lambda: self._verified(known, secret))
        if right and secret_hash is not None:
            self._seen[seen] = None
            if len(self._seen) > _MOST_SEEN:
                self._seen.popitem(last=False)
        return right and secret_hash is not None

    def _verified(self, secret_hash: str, secret: str) -> bool:
        try:
            return self._hasher.verify(secret_hash, secret)
        except (VerificationError, InvalidHashError):
            return False

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._in_flight >= self._limit:
            raise Fault(
                errors_pb2.ERROR_REASON_OVERLOADED, "too many logins at once", retry_after=1.0
            )
        self._in_flight += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._in_flight -= 1
