"""What is done here, in the audit trail: with the change it describes, or neither.

A change and its entry are one transaction, so an act that cannot be written down does not happen.
Logins are too many for that: they are noted, and written a few times a second in one go. While
they cannot be, a bounded number is kept; beyond it nobody logs in.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from itertools import islice

from anabranch.v1 import errors_pb2
from services.auth.authority import Authority
from services.auth.entitlements import of_client
from services.auth.records import Records
from services.auth.rule_records import Role
from services.auth.rulebook import read_roles
from services.auth.store import Store
from services.chassis.audit.entry import Act, Scalar
from services.chassis.audit.refusals import MOST_PER_SECOND, OMITTED, TURNED_AWAY, refusal
from services.chassis.audit.verify import PRUNED
from services.chassis.errors import Fault, reason_name
from services.chassis.principal import rejected

_log = logging.getLogger(__name__)

_FLUSH_EVERY_S = 0.25
_AT_ONCE = 1000
_PRUNE_EVERY_S = 3600.0
# Their refusals have an entry that says more.
_WRITE_THEIR_OWN = frozenset(
    f"/anabranch.v1.AuthService/{name}" for name in ("IssueToken", "ExchangeApiKey")
)


@dataclass(slots=True)
class Change:
    """A transaction that is about to change something, and the act that will be written of it.

    `roles` are those of this moment, `authority` is what the caller has at this moment.
    """

    records: Records
    act: Act
    roles: Mapping[str, Role]
    authority: Authority

    def concerns(self, *, tenant: str, target: str = "") -> None:
        """Says whose it is, and what, once that is known."""
        self.act = replace(self.act, tenant=tenant, target=target or self.act.target)


class Acts:
    """The auth service's part in the audit trail of its database."""

    def __init__(
        self,
        store: Store,
        *,
        spool: int,
        retention: float,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """At most `spool` noted acts wait; `retention` in seconds; `clock` returns unix seconds."""
        self._store = store
        self._limit = spool
        self._retention = retention
        self._clock = clock
        self._monotonic = monotonic
        self._noted: deque[Act] = deque()
        self._second = self._strangers = self._omitted = 0
        # Told of every act as well, once it is set: a second trail.
        self.mirror: Callable[[Act], object] | None = None

    @asynccontextmanager
    async def changing(self, act: Act, authority: Authority) -> AsyncIterator[Change]:
        """A transaction under the lock of all replicas; leaving it writes the act, too.

        The caller's token may say more than is so: who was demoted or disabled since does not
        undo that with it. Raises what the block raises, and Fault when the database is away.
        """
        self._check_room()
        with self.noting_refusal(act):
            async with self._store.alone() as records:
                roles = await read_roles(records.rules)
                caller = await records.client(authority.client_id)
                if caller is None or caller.disabled:
                    raise rejected()
                change = Change(records, act, roles, authority.still(of_client(caller, roles)))
                yield change
                await records.trail.append([change.act], self._clock())
        self._mirrored(change.act)

    @contextmanager
    def noting_refusal(self, act: Act) -> Iterator[None]:
        """Writes that the act was refused, when the block raises Fault."""
        try:
            yield
        except Fault as fault:
            self.note(refused(act, fault))
            raise

    @asynccontextmanager
    async def acting(self, act: Act) -> AsyncIterator[dict[str, Scalar]]:
        """Surrounds an act that changes nothing in the database; it is written soon after.

        What is put into the dict belongs to it. Raises Fault, before the block, when too many acts
        wait already.
        """
        self._check_room()
        outcome: dict[str, Scalar] = {}
        with self.noting_refusal(act):
            yield outcome
        self.note(replace(act, details={**act.details, **outcome}))

    def note(self, act: Act) -> None:
        """Writes the act soon. Raises Fault when too many wait already."""
        self._check_room()
        self._noted.append(act)

    def note_stranger(self, act: Act) -> None:
        """Writes soon that somebody was not let in.

        Anybody can cause these: only so many are written in a second, and fewer while the trail
        waits; the others are counted.
        """
        second = int(self._monotonic())
        if second != self._second:
            self._second, self._strangers = second, 0
        self._strangers += 1
        if self._strangers > MOST_PER_SECOND or 2 * len(self._noted) >= self._limit:
            self._omitted += 1
        else:
            self._noted.append(act)

    def refused_at_the_door(self, method: str, fault: Fault, peer: str) -> None:
        """What the guard calls with the end of each failed RPC."""
        if fault.reason not in TURNED_AWAY or method in _WRITE_THEIR_OWN:
            return
        self.note_stranger(refusal(method, fault, peer))

    async def keep_written(self) -> None:
        """Writes what was noted, until cancelled; then once more."""
        pruned = self._clock()
        writing: asyncio.Task[None] | None = None
        try:
            while True:
                await asyncio.sleep(_FLUSH_EVERY_S)
                # Whole, whoever is cancelled: a batch cut off while it is committed may be there,
                # and would be written again.
                writing = asyncio.create_task(self._flush(), name="audit-flush")
                await asyncio.shield(writing)
                if self._clock() - pruned > _PRUNE_EVERY_S:
                    pruned = self._clock()
                    await self.prune()
        finally:
            if writing is not None:
                await asyncio.wait([writing])
            await self._flush()

    async def prune(self) -> None:
        """Removes entries older than the retention, and writes down that it did."""
        try:
            async with self._store.alone() as records:
                removed = await records.trail.prune(self._clock() - self._retention)
                if removed is not None:
                    sequence, digest = removed
                    details: dict[str, Scalar] = {
                        "first_sequence": 1,
                        "last_sequence": sequence,
                        "last_hash": digest.hex(),
                    }
                    await records.trail.append([Act(PRUNED, details=details)], self._clock())
        except Fault as fault:
            _log.warning("the audit trail was not pruned", extra={"cause": fault.message})

    async def _flush(self) -> None:
        if self._omitted and len(self._noted) < self._limit:
            details: dict[str, Scalar] = {"count": self._omitted}
            self._noted.append(Act(OMITTED, succeeded=False, details=details))
            self._omitted = 0
        while self._noted:
            batch = list(islice(self._noted, _AT_ONCE))
            try:
                async with self._store.alone() as records:
                    await records.trail.append(batch, self._clock())
            except Fault as fault:
                _log.warning("the audit trail waits", extra={"cause": fault.message})
                return
            for act in batch:
                self._noted.popleft()
                self._mirrored(act)

    def _mirrored(self, act: Act) -> None:
        if self.mirror is not None:
            self.mirror(act)

    def _check_room(self) -> None:
        if len(self._noted) >= self._limit:
            raise Fault(
                errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
                "the audit trail cannot be written, so nothing is done",
                metadata={"dependency": "audit"},
                retry_after=5.0,
            )


def refused(act: Act, fault: Fault) -> Act:
    """The act, not done for this reason."""
    details = {**act.details, "error": reason_name(fault.reason)}
    return replace(act, succeeded=False, details=details)
