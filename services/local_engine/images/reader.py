"""Takes a request's images from where they are to where an engine can decode them.

Checks before it fetches, and again what it fetched. How an address is reached is the fetcher's.
"""

from __future__ import annotations

import asyncio
from hashlib import blake2b

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

AT_ONCE = 4
"""Requests whose images are read at once; each may hold as many bytes as the limits say."""
MOST_WAITING = 64


class ImageReader:
    """Reads images of requests; without a fetcher only those that requests hold themselves."""

    def __init__(self, limits: ImageLimits, fetcher: ImageFetcher | None) -> None:
        self._limits = limits
        self._fetcher = fetcher
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    def check(self, request: pb.GenerateRequest, facts: ModelFacts, waiting: int = 0) -> None:
        """Whether a request's images may be read; so many others are `waiting` to begin with it.

        Raises Fault UNSUPPORTED where the model reads none, INVALID_REQUEST with all that is wrong
        with these, OVERLOADED.
        """
        if not facts.most_images:
            raise unsupported("images", "this model does not read images")
        found = violations_of(request, self._limits, facts.most_images)
        if found:
            raise invalid(found)
        waiting += self._waiting
        if waiting >= MOST_WAITING:
            raise Fault(
                errors_pb2.ERROR_REASON_OVERLOADED,
                f"the images of {waiting} requests wait to be read",
                retry_after=1.0,
            )

    async def read(self, request: pb.GenerateRequest) -> list[Picture]:
        """The images of a request that was checked, in order.

        Raises Fault INVALID_REQUEST for one that cannot be had or is not what it is said to be.
        """
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            return await self._read(request)
        finally:
            self._turn.release()

    async def _read(self, request: pb.GenerateRequest) -> list[Picture]:
        found: list[Violation] = []
        pictures: list[Picture] = []
        left = self._limits.bytes_all - sum(len(image.data) for _, _, image in images_of(request))
        for at, _, image in images_of(request):
            data, field = image.data, f"{at}.data"
            if image.WhichOneof("source") == "uri":
                field = f"{at}.uri"
                data = await self._fetch(image.uri, field, min(left, self._limits.bytes_each))
                left -= len(data)
            header = checked_header(data, image.media_type, field, found)
            if header is not None:
                digest = blake2b(data, digest_size=16).hexdigest()
                pictures.append(Picture(field, data, header, digest))
        found += too_many_pixels([picture.header for picture in pictures], self._limits)
        if found:
            raise invalid(found)
        return pictures

    async def _fetch(self, uri: str, field: str, most_bytes: int) -> bytes:
        if self._fetcher is None:
            raise invalid([Violation(field, "is not on this service's list of addresses")])
        try:
            return await self._fetcher.fetch(uri, most_bytes)
        except FetchError as failed:
            raise invalid([Violation(field, str(failed))]) from failed
