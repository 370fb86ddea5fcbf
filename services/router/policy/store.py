"""The policy in force in one router process, and what was refused since.

Whoever decides reads `current()`; sources bring documents. Where they come from, and how workers
of one router agree, is in the modules beside this one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from services.router.core.policy import Policy
from services.router.policy import document as documents
from services.router.policy.document import Document
from services.router.policy.problems import BadPolicy

_log = logging.getLogger(__name__)

_LOGGED_PROBLEMS = 10


class Source(StrEnum):
    """Where a policy came from, as GetPolicy says it."""

    DEFAULT = "default"
    FILE = "file"
    CONSUL = "consul"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A document that is not in force although it is newer. `at` is in seconds since the epoch."""

    place: str
    problems: tuple[str, ...]
    at: float

    def lines(self) -> list[str]:
        """For people: when and where, then each fault."""
        moment = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="seconds")
        return [f"{self.place} at {moment} was refused:", *self.problems]


class PolicyStore:
    """Holds the policy in force. For one event loop; `read` alone may run in any thread.

    A policy is replaced whole: `current()` is the old one until it is the new one, and a refused
    document changes nothing but `rejected`.
    """

    def __init__(self, defaults: Policy, *, epoch_clock: Callable[[], float] = time.time) -> None:
        self._defaults = defaults
        self._default = Document(documents.versioned(defaults), "")
        self._now = epoch_clock
        self._current = self._default.policy
        self._text = ""
        self._source = Source.DEFAULT
        self._rejected: Rejected | None = None
        self._rejections = 0
        self._subscribers: list[Callable[[Policy], None]] = []
        self._changed = asyncio.Event()

    def current(self) -> Policy:
        """The policy in force; the same object until there is another."""
        return self._current

    @property
    def source(self) -> Source:
        """Where the policy in force came from."""
        return self._source

    @property
    def text(self) -> str:
        """The document in force as it was written, or the defaults as one."""
        if self._text:
            return self._text
        return documents.render(
            self._current,
            "What this router does by itself and by its settings; no document says otherwise.",
        )

    @property
    def default_version(self) -> str:
        """The version of the policy that is in force without any document."""
        return self._default.policy.version

    @property
    def rejected(self) -> Rejected | None:
        """The newest document, if it was refused."""
        return self._rejected

    def subscribe(self, subscriber: Callable[[Policy], None]) -> None:
        """Calls `subscriber` with each policy that comes into force from now on.

        It is called when `current()` already gives that policy, and must not raise.
        """
        self._subscribers.append(subscriber)

    def read(self, content: str | bytes) -> Document:
        """A document that could be put in force. Raises BadPolicy with every fault."""
        return documents.read(content, self._defaults)

    def put(self, document: Document, source: Source) -> None:
        """Puts a document in force."""
        self._rejected = None
        self._text = document.text
        self._source = source
        self._changed.set()
        self._changed = asyncio.Event()
        if document.policy == self._current:
            return
        self._current = document.policy
        _log.info("policy in force", extra={"version": self._current.version, "source": source})
        for subscriber in self._subscribers:
            subscriber(self._current)

    def put_default(self) -> None:
        """Puts the defaults in force."""
        self.put(self._default, Source.DEFAULT)

    def apply(self, content: str | bytes, source: Source, place: str) -> Document:
        """Reads a document and puts it in force. Raises BadPolicy, after noting it as rejected.

        Takes as long as `read`: while requests run, read in a thread and `put` what comes of it.
        """
        try:
            document = self.read(content)
        except BadPolicy as bad:
            self.refuse(place, tuple(map(str, bad.problems)))
            raise
        self.put(document, source)
        return document

    def refuse(self, place: str, problems: tuple[str, ...]) -> None:
        """Notes that the newest document of a place is not applied, and why."""
        self._rejections += 1
        self._rejected = Rejected(place, problems, self._now())
        _log.warning(
            "policy refused, the last good one stays in force",
            extra={
                "place": place,
                "version": self._current.version,
                "faults": len(problems),
                "first_faults": list(problems[:_LOGGED_PROBLEMS]),
            },
        )

    def forget_rejected(self) -> None:
        """The place holds again what is in force."""
        self._rejected = None

    async def until(self, document: Document) -> None:
        """Waits until that very document is in force."""
        while (self._current.version, self._text) != (document.policy.version, document.text):
            await self._changed.wait()

    def observe(self, meter: Meter) -> None:
        """Shows which policy is in force, and how many documents were refused."""
        meter.create_observable_gauge(
            "anabranch.router.policy.info",
            callbacks=[self._info],
            description="1 for the version and source of the routing policy in force",
        )
        meter.create_observable_gauge(
            "anabranch.router.policy.rejected",
            callbacks=[lambda _: [Observation(int(self._rejected is not None))]],
            description="1 while the newest routing policy is refused and an older one in force",
        )
        meter.create_observable_counter(
            "anabranch.router.policy.rejections",
            callbacks=[lambda _: [Observation(self._rejections)]],
            description="Routing policies that were refused",
        )

    def _info(self, _: CallbackOptions) -> list[Observation]:
        labels = {"version": self._current.version, "source": str(self._source)}
        return [Observation(1, labels)]
