"""Replicas of the auth service on one database, and a service that follows one of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from services.auth.app import running
from services.auth.settings import Settings
from services.auth.store import database_url
from services.chassis.auth_client import AuthClient
from services.chassis.authn import Verifier
from services.chassis.settings import Secret
from tests.support.auth import ISSUER, Front

KEK = Secret("k" * 32)


@asynccontextmanager
async def replicas(url: str, directory: Path, count: int = 2) -> AsyncIterator[list[Front]]:
    """So many, all started at once."""
    stop = asyncio.Event()
    ready: list[asyncio.Future[Front]] = [asyncio.Future() for _ in range(count)]

    async def replica(number: int) -> None:
        settings = Settings(
            listen="127.0.0.1:0",
            http_listen="127.0.0.1:0",
            registry="none",
            data_dir=directory / str(number),
            database_url=Secret(url),
            key_encryption_secret=KEK,
            bootstrap_secret_file=directory / f"secret-{number}",
            refresh_period=0.1,
            drain_timeout=1.0,
        )
        try:
            async with running(settings) as host:
                front = Front(host.address, host.http_address, "", directory)
                async with front.channel:
                    ready[number].set_result(front)
                    await stop.wait()
        except BaseException as failed:
            if not ready[number].done():
                ready[number].set_exception(failed)
            raise

    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(replica(number))
        try:
            fronts = await asyncio.gather(*ready)
            secret = await asyncio.to_thread(_first_secret, directory)
            for front in fronts:
                front.secret = secret
            yield fronts
        finally:
            stop.set()


@asynccontextmanager
async def follower(
    front: Front, *, clock: Callable[[], float] = time.time
) -> AsyncIterator[Verifier]:
    """Another service, which hears of everything from this replica alone."""
    source = AuthClient(front.address, None)
    await source.follow()
    verifier = Verifier(source, issuer=ISSUER, audience="anabranch", clock=clock, exchange=source)
    following = asyncio.create_task(verifier.keep_fresh())
    try:
        yield verifier
    finally:
        following.cancel()
        await asyncio.wait([following])
        await verifier.close()
        await source.close()


async def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    engine = create_async_engine(database_url(url))
    async with engine.connect() as connection:
        found = [tuple(row) for row in await connection.execute(text(query))]
    await engine.dispose()
    return found


def _first_secret(directory: Path) -> str:
    """The administrator's, if these replicas made it."""
    return "".join(path.read_text().strip() for path in directory.glob("secret-*"))
