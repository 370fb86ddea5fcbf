"""The policy of one router alone: from its file, or built in, until an operator says otherwise.

All its workers follow one board: whichever sees the file change first, or takes an operator's
update, posts it for all. An update holds until the file changes; the posting names what the file
held, so that a worker started later knows that too.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from uuid import uuid4

from services.chassis.settings import SettingsError
from services.router.policy.board import Board, Posted
from services.router.policy.document import Document
from services.router.policy.policy_file import Held, PolicyFile
from services.router.policy.problems import BadPolicy
from services.router.policy.source import not_settled, version_mismatch
from services.router.policy.store import PolicyStore, Source

_log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
_ATTEMPTS = 5


class LocalSource:
    """A file's policy, or with `path` None only an operator's."""

    def __init__(
        self,
        store: PolicyStore,
        board: Board,
        path: Path | None,
        *,
        look_every: float = LOOK_EVERY_S,
    ) -> None:
        self._store = store
        self._board = board
        self._file = PolicyFile(path) if path is not None else None
        self._place = f"file {path}"
        self._look_every = look_every
        self._changing = asyncio.Lock()
        self._revision = 0
        # Names of what the file held when the policy in force was made, and of what was refused.
        self._held = ""
        self._refused = ""

    async def start(self) -> None:
        await self.look()
        rejected = self._store.rejected
        if rejected is not None and self._store.source is Source.DEFAULT:
            raise SettingsError([f"{rejected.place}: {fault}" for fault in rejected.problems])

    async def follow(self) -> None:
        while True:
            await self._wait()
            await self.look()

    async def look(self) -> None:
        """Follows what is posted and what the file holds, once."""
        async with self._changing:
            await self._obey()
            if self._file is not None:
                await self._look_at(self._file)

    async def write(self, document: Document, expected_version: str) -> None:
        async with self._changing:
            for _ in range(_ATTEMPTS):
                await self._obey()
                present = self._store.current().version
                if expected_version not in ("", present):
                    raise version_mismatch(present, expected_version)
                # Also a file that was refused has been seen: only another change undoes this.
                held = self._refused or self._held
                posted = Posted(uuid4().hex, document.text, Source.ADMIN, held)
                try:
                    first = await self._board.post(posted, self._revision)
                except TimeoutError:
                    raise not_settled("the supervisor of the workers does not answer") from None
                await self._obey()
                if first:
                    return
            raise not_settled("others keep changing the policy")

    async def _wait(self) -> None:
        """Until there is a posting, or it is time to look at the file."""
        if self._board.revision != self._revision:
            return
        try:
            async with asyncio.timeout(self._look_every if self._file is not None else None):
                await self._board.news()
        except TimeoutError:
            return

    async def _obey(self) -> None:
        """Puts in force what is posted."""
        posted, revision = self._board.latest, self._board.revision
        if posted is None or revision == self._revision:
            return
        self._revision = revision
        self._held = posted.held
        self._refused = ""
        try:
            document = await asyncio.to_thread(self._store.read, posted.text)
        except BadPolicy as bad:
            # Only where another worker runs other code or settings, as in the midst of an upgrade.
            self._store.refuse("another worker's policy", tuple(map(str, bad.problems)))
            return
        self._store.put(document, Source(posted.source))

    async def _look_at(self, file: PolicyFile) -> None:
        """Takes what the file holds, if that is something new."""
        held = await asyncio.to_thread(file.look)
        if held is None or held.name == self._refused:
            return
        if held.name != self._held:
            await self._take(held)
        elif self._refused:
            self._refused = ""
            self._store.forget_rejected()

    async def _take(self, held: Held) -> None:
        """Puts in force what the file holds, and posts it; or notes what is wrong with it."""
        problems: tuple[str, ...] = (held.objection,)
        if not held.objection:
            try:
                document = await asyncio.to_thread(self._store.read, held.content)
            except BadPolicy as bad:
                problems = tuple(map(str, bad.problems))
            else:
                await self._announce(document, held)
                return
        self._refused = held.name
        self._store.refuse(self._place, problems)

    async def _announce(self, document: Document, held: Held) -> None:
        self._held, self._refused = held.name, ""
        self._store.put(document, Source.FILE)
        posted = Posted(uuid4().hex, document.text, Source.FILE, held.name)
        try:
            first = await self._board.post(posted, self._revision)
        except TimeoutError:
            # The other workers look at the file themselves.
            _log.warning("the supervisor does not answer", extra={"place": self._place})
            return
        if first:
            self._revision += 1
        # Whoever came first may have posted for another state of the file: the next look tells.
        await self._obey()
