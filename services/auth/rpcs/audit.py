"""The audit trail, on the wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import grpc
from google.protobuf import json_format

from anabranch.v1 import auth_pb2 as pb
from services.auth.audit_records import StoredEntry, Wanted
from services.auth.authority import authority_of
from services.auth.core.clients import Problem, name_problems
from services.auth.login import refuse
from services.auth.rpcs.wire import page_of, page_token, timestamp, unix_seconds
from services.auth.store import Store
from services.chassis.audit.head import Head, Signer
from services.chassis.principal import current_principal

Context: TypeAlias = grpc.aio.ServicerContext
_LONGEST_ACTION = 64
_MOST_DIGITS = 18  # of a number that a database takes
_READS_ALL = frozenset({"admin", "audit"})


class AuditRpcs:
    """QueryAudit."""

    def __init__(self, store: Store, signer: Signer, clock: Callable[[], float]) -> None:
        """`clock` returns unix seconds."""
        self._store = store
        self._signer = signer
        self._clock = clock

    async def QueryAudit(
        self, request: pb.QueryAuditRequest, context: Context
    ) -> pb.QueryAuditResponse:
        problems: list[Problem] = []
        for name in ("client_id", "tenant"):
            value = getattr(request, name)
            problems += name_problems(name, value) if value else []
        if len(request.action) > _LONGEST_ACTION:
            problems.append(Problem("action", f"must be at most {_LONGEST_ACTION} characters"))
        if not request.action.isprintable():
            problems.append(Problem("action", "must not hold control characters"))
        times = [
            unix_seconds(name, getattr(request, name), problems) if request.HasField(name) else None
            for name in ("since", "until")
        ]
        after, size = page_of(request.page_size, request.page_token, problems)
        if after and not (after.isdecimal() and len(after) <= _MOST_DIGITS):
            problems.append(Problem("page_token", "must be a next_page_token of this RPC"))
        refuse(problems)
        tenant = request.tenant
        principal = current_principal()
        if not _READS_ALL & principal.scopes:
            authority_of(principal).check_tenant(tenant or principal.tenant)
            tenant = principal.tenant
        wanted = Wanted(
            after=int(after) if after else None,
            oldest_first=request.oldest_first,
            since=times[0],
            until=times[1],
            client_id=request.client_id,
            action=request.action,
            tenant=tenant,
        )
        async with self._store.reading() as records:
            found = await records.trail.page(wanted, size + 1)
            last = await records.trail.last()
        shown = found[:size]
        answer = pb.QueryAuditResponse(
            records=[_record(stored) for stored in shown],
            next_page_token=(page_token(str(shown[-1].sequence)) if len(found) > size else ""),
        )
        if last is not None:
            answer.head.CopyFrom(_head(self._signer.sign(last, time=self._clock())))
        return answer


def _record(stored: StoredEntry) -> pb.AuditRecord:
    record = pb.AuditRecord(
        sequence=stored.sequence,
        hash=stored.hash,
        previous_hash=stored.previous_hash,
        canonical=stored.canonical.encode(),
    )
    if stored.entry is None:
        return record  # changed in the database: shown as it is, for whoever verifies
    act = stored.entry.act
    record.time.CopyFrom(timestamp(stored.entry.time))
    record.client_id = act.client_id
    record.action = act.action
    record.target = act.target
    record.succeeded = act.succeeded
    record.tenant = act.tenant
    record.peer = act.peer
    json_format.ParseDict(dict(act.details), record.details)
    return record


def _head(head: Head) -> pb.AuditHead:
    found = pb.AuditHead(
        trail=head.trail,
        sequence=head.sequence,
        hash=head.hash,
        key_id=head.key_id,
        signature=head.signature,
        public_key=head.public_key,
    )
    found.time.FromMicroseconds(head.time_us)  # exactly: it is part of what was signed
    return found
