"""Takes a request's images from where they are to where an engine can decode them.

Checks before it fetches, and again what it fetched. How an address is reached is the fetcher's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Any, TypeVar

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Violation, invalid
from services.local_engine.chat_turns import unsupported
from services.local_engine.engine import ModelFacts, Picture
from services.local_engine.images.fetcher import FetchError, ImageFetcher
from services.local_engine.images.limits import (
    ImageLimits,
    checked_header,
    images_of,
    too_many_pixels,
    violations_of,
)
from services.local_engine.images.turns import FairTurns

T = TypeVar("T")

AT_ONCE = 4
"""Requests whose images are read and decoded at once; each may hold as many bytes and pixels as the
limits say."""
MOST_WAITING = 128
MOST_WAITING_OF_ONE = 64
FETCHED_AT_ONCE = 4
"""Images of one request."""


class ImageReader:
    """Reads images of requests; without a fetcher only those that requests hold themselves."""

    def __init__(self, limits: ImageLimits, fetcher: ImageFetcher | None) -> None:
        self._limits = limits
        self._fetcher = fetcher
        self._turns = FairTurns(AT_ONCE, MOST_WAITING, MOST_WAITING_OF_ONE)
        self._making: set[asyncio.Future[Any]] = set()

    def check(self, request: pb.GenerateRequest, facts: ModelFacts, tenant: str = "") -> None:
        """Whether a request's images may be read.

        Raises Fault UNSUPPORTED where the model reads none, INVALID_REQUEST with all that is wrong
        with these, OVERLOADED.
        """
        if not facts.most_images:
            raise unsupported("images", "this model does not read images")
        found = violations_of(request, self._limits, facts.most_images)
        if found:
            raise invalid(found)
        self._check_room(tenant)

    async def read(
        self,
        request: pb.GenerateRequest,
        make: Callable[[list[Picture]], Awaitable[T]],
        tenant: str = "",
    ) -> T:
        """What `make` makes of the images of a request that was checked, in order.

        Both take one of AT_ONCE turns, tenants by turns. A caller that leaves gives its turn back
        only when `make` has ended: threads that decode cannot be stopped. Raises Fault
        INVALID_REQUEST for an image that cannot be had or is not what it is said to be, OVERLOADED
        where too many wait.
        """
        self._check_room(tenant)
        await self._turns.take(tenant)
        try:
            pictures = await self._read(request)
        except BaseException:
            self._turns.give_back()
            raise
        making = asyncio.ensure_future(make(pictures))
        self._making.add(making)
        making.add_done_callback(self._made)
        return await asyncio.shield(making)

    def _made(self, making: asyncio.Future[T]) -> None:
        self._making.discard(making)
        self._turns.give_back()
        if not making.cancelled():
            making.exception()  # seen, even where nobody waits any more

    def _check_room(self, tenant: str) -> None:
        if not self._turns.has_room(tenant):
            raise Fault(
                errors_pb2.ERROR_REASON_OVERLOADED,
                f"the images of {self._turns.waiting()} requests wait to be read",
                retry_after=1.0,
            )

    async def _read(self, request: pb.GenerateRequest) -> list[Picture]:
        found: list[Violation] = []
        pictures: list[Picture] = []
        fetched = await self._fetch_all(request)
        for at, _, image in images_of(request):
            data, field = image.data, f"{at}.data"
            if image.WhichOneof("source") == "uri":
                field = f"{at}.uri"
                data = fetched[field]
            header = checked_header(data, image.media_type, field, found)
            if header is not None:
                digest = blake2b(data, digest_size=16).hexdigest()
                pictures.append(Picture(field, data, header, digest))
        found += too_many_pixels([picture.header for picture in pictures], self._limits)
        if found:
            raise invalid(found)
        return pictures

    async def _fetch_all(self, request: pb.GenerateRequest) -> dict[str, bytes]:
        """The images to be fetched by their fields: some at once, all by one deadline."""
        held = sum(len(image.data) for _, _, image in images_of(request))
        wanted = [(f"{at}.uri", image.uri) for at, _, image in images_of(request) if image.uri]
        if not wanted:
            return {}
        turns = asyncio.Semaphore(FETCHED_AT_ONCE)
        found: dict[str, bytes] = {}
        refused: list[Violation] = []

        async def fetch(field: str, uri: str) -> None:
            async with turns:
                # What others fetch meanwhile counts when it is there: see the sum below.
                left = self._limits.bytes_all - held - sum(map(len, found.values()))
                most = min(left, self._limits.bytes_each)
                try:
                    found[field] = await self._fetch(uri, field, most)
                except Fault as fault:
                    refused.extend(fault.violations)

        try:
            async with asyncio.timeout(self._fetcher.timeout if self._fetcher else None):
                async with asyncio.TaskGroup() as group:
                    for field, uri in wanted:
                        group.create_task(fetch(field, uri))
        except TimeoutError:
            told = {violation.field for violation in refused}
            late = [field for field, _ in wanted if field not in found and field not in told]
            refused += [Violation(field, "could not be fetched") for field in late]
        if refused:
            raise invalid(sorted(refused, key=lambda violation: violation.field))
        if held + sum(map(len, found.values())) > self._limits.bytes_all:
            most = self._limits.bytes_all
            raise invalid([Violation("messages", f"hold images of more than {most} bytes")])
        return found

    async def _fetch(self, uri: str, field: str, most_bytes: int) -> bytes:
        if self._fetcher is None:
            raise invalid([Violation(field, "is not on this service's list of addresses")])
        try:
            return await self._fetcher.fetch(uri, most_bytes)
        except FetchError as failed:
            raise invalid([Violation(field, str(failed))]) from failed
