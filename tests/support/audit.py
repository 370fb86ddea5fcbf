"""Audit trails for tests: a running one over given sinks, sinks that fail or hang on demand, and
acts to write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.chassis.audit.entry import Act, ChainedEntry
from services.chassis.audit.head import Head, Signer
from services.chassis.audit.reading import Wanted, entries_in, verify_path
from services.chassis.audit.sink import Sink
from services.chassis.audit.trail import LocalChain, Trail
from services.chassis.audit.verify import Report

SIGNER = Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


class MemorySink:
    """Keeps what it is given. Raises while `broken` is set; waits while `open` is not."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.broken = False
        self.open = asyncio.Event()
        self.open.set()
        self.calls = 0
        self.entries: list[ChainedEntry] = []
        self.heads: list[Head] = []

    async def append(self, entries: Sequence[ChainedEntry], head: Head | None) -> None:
        self.calls += 1
        await self.open.wait()
        if self.broken:
            raise OSError(28, "No space left on device")
        self.entries += entries
        if head is not None:
            self.heads.append(head)

    async def close(self) -> None:
        """Nothing to end."""

    @property
    def actions(self) -> list[str]:
        return [chained.entry.act.action for chained in self.entries]


@asynccontextmanager
async def running(
    *sinks: Sink, trail: str = "t", last: ChainedEntry | None = None, **options: Any
) -> AsyncIterator[Trail]:
    """A trail that writes to the sinks; it finishes when the context is left."""
    one = Trail(sinks, LocalChain(trail, last), SIGNER, **options)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(one.run())
        try:
            yield one
        finally:
            await one.finish(0.05 if one.down else 30)
            task.cancel()
    await one.close()


def act(number: int = 0, action: str = "model.generate") -> Act:
    return Act(action, client_id="bot", tenant="acme", target="m", details={"n": number})


def the_report(directory: Path) -> Report:
    """What a verification of the one trail of the directory says."""
    (report,) = verify_path(directory, public_keys=[SIGNER.public_key])
    return report


def acts_in(directory: Path) -> list[Act]:
    return [chained.entry.act for chained in entries_in(directory, Wanted())]
