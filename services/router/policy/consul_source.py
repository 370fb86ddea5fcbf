"""The policy of all routers: a document under a key of Consul, which each of them follows.

An update is written there, if what it replaces is still there, and comes back like any other
change. The board serves only a worker that is started while Consul is away or its document bad.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from uuid import uuid4

from services.chassis.registry import Entry, KeyValues, KeyValuesUnavailable
from services.chassis.settings import SettingsError
from services.router.policy.board import Board, Posted
from services.router.policy.document import Document
from services.router.policy.problems import BadPolicy
from services.router.policy.source import not_settled, version_mismatch
from services.router.policy.store import PolicyStore, Source

_log = logging.getLogger(__name__)

_ATTEMPTS = 5
_FOLLOWED_WITHIN_S = 5.0


class ConsulSource:
    """Follows one key."""

    def __init__(self, store: PolicyStore, board: Board, key_values: KeyValues, key: str) -> None:
        self._store = store
        self._board = board
        self._key_values = key_values
        self._key = key
        self._place = f"Consul's key {key}"
        self._watch: AsyncIterator[Entry] = key_values.watch(key)
        # Whether what is in force is another worker's, and no value has been seen here since.
        self._adopted = False

    async def start(self) -> None:
        posted = self._board.latest
        if posted is not None:
            await self._adopt(posted)
            return
        # Without Consul there are no backends either: nobody waits longer for this.
        async for entry in self._watch:
            await self._take(entry)
            break
        rejected = self._store.rejected
        if rejected is not None:
            raise SettingsError([f"{rejected.place}: {fault}" for fault in rejected.problems])

    async def follow(self) -> None:
        async for entry in self._watch:
            await self._take(entry)

    async def write(self, document: Document, expected_version: str) -> None:
        try:
            await self._write(document, expected_version)
            async with asyncio.timeout(_FOLLOWED_WITHIN_S):
                await self._store.until(document)
        except KeyValuesUnavailable as trouble:
            _log.warning("policy not written: %s", trouble, extra={"place": self._place})
            raise not_settled("Consul does not take the policy") from trouble
        except TimeoutError:
            raise not_settled("the policy is written, but has not come back yet") from None

    async def _write(self, document: Document, expected_version: str) -> None:
        for _ in range(_ATTEMPTS):
            entry = await self._key_values.get(self._key)
            if expected_version:
                present = await self._version_of(entry)
                if present != expected_version:
                    raise version_mismatch(present, expected_version)
            if await self._key_values.put(self._key, document.text.encode(), entry.index):
                return
        raise not_settled("others keep changing the policy")

    async def _version_of(self, entry: Entry) -> str:
        """The version that an entry has for operators; of a bad one, that of the last good one."""
        if entry.value is None:
            return self._store.default_version
        try:
            return (await asyncio.to_thread(self._store.read, entry.value)).policy.version
        except BadPolicy:
            return self._store.current().version

    async def _take(self, entry: Entry) -> None:
        """Puts an entry in force and tells the other workers; or notes what is wrong with it."""
        if entry.value is None and self._adopted:
            # The others would have said so if somebody had removed it: an outage has.
            _log.warning("the policy is gone, another worker's is kept", extra={"key": self._key})
            return
        self._adopted = False
        if entry.value is None:
            _log.info("no policy is written: the settings decide", extra={"place": self._place})
            self._store.put_default()
            await self._post("", Source.DEFAULT)
            return
        try:
            document = await asyncio.to_thread(self._store.read, entry.value)
        except BadPolicy as bad:
            self._store.refuse(self._place, tuple(map(str, bad.problems)))
            return
        self._store.put(document, Source.CONSUL)
        await self._post(document.text, Source.CONSUL)

    async def _post(self, text: str, source: Source) -> None:
        posted = self._board.latest
        if posted is not None and posted.text == text:
            return
        try:
            await self._board.post(Posted(uuid4().hex, text, source), self._board.revision)
        except TimeoutError:
            _log.warning("the supervisor does not answer", extra={"place": self._place})

    async def _adopt(self, posted: Posted) -> None:
        if not posted.text:
            self._store.put_default()
            return
        try:
            document = await asyncio.to_thread(self._store.read, posted.text)
        except BadPolicy as bad:
            raise SettingsError([f"another worker's policy: {p}" for p in bad.problems]) from None
        self._store.put(document, Source(posted.source))
        self._adopted = True
