"""What several workers know of the backends, joined into what one router would say.

Pure: messages in, messages out.
"""

from __future__ import annotations

from collections.abc import Sequence

from anabranch.v1 import admin_pb2

# READY is said only where every worker can send work; what is further from it is said instead.
_FURTHER_FROM_READY = (
    admin_pb2.BACKEND_STATE_UNSPECIFIED,
    admin_pb2.BACKEND_STATE_READY,
    admin_pb2.BACKEND_STATE_DRAINING,
    admin_pb2.BACKEND_STATE_CONNECTING,
    admin_pb2.BACKEND_STATE_LOST,
)


def merge_backends(
    views: Sequence[Sequence[admin_pb2.BackendStatus]],
) -> list[admin_pb2.BackendStatus]:
    """One status for each backend that any worker knows, ordered by id. One view a worker.

    A worker that has not heard of a backend yet, or no longer knows it, sends nothing there.
    """
    seen: dict[str, list[admin_pb2.BackendStatus]] = {}
    for view in views:
        for status in view:
            seen.setdefault(status.backend_id, []).append(status)
    for backend_id, statuses in seen.items():
        if len(statuses) < len(views):
            statuses.append(_unheard_of(backend_id))
    return [merge_statuses(seen[backend_id]) for backend_id in sorted(seen)]


def merge_statuses(statuses: Sequence[admin_pb2.BackendStatus]) -> admin_pb2.BackendStatus:
    """One backend as one or more workers see it.

    Requests in flight are added up; the state is the one furthest from ready, with its detail;
    models are those of all; the load is the freshest report, which is about the backend as a whole.
    """
    merged = admin_pb2.BackendStatus()
    merged.CopyFrom(max(statuses, key=lambda status: _FURTHER_FROM_READY.index(status.state)))
    merged.in_flight = sum(status.in_flight for status in statuses)
    merged.drained = any(status.drained for status in statuses)
    del merged.models[:]
    merged.models.extend(sorted({model for status in statuses for model in status.models}))
    reported = [status for status in statuses if status.HasField("load")]
    if reported:
        freshest = min(reported, key=lambda status: status.load_age.ToNanoseconds())
        merged.load.CopyFrom(freshest.load)
        merged.load_age.CopyFrom(freshest.load_age)
    for field in ("version", "zone"):
        known = (getattr(status, field) for status in statuses)
        setattr(merged, field, next(filter(None, known), ""))
    return merged


def _unheard_of(backend_id: str) -> admin_pb2.BackendStatus:
    return admin_pb2.BackendStatus(
        backend_id=backend_id,
        state=admin_pb2.BACKEND_STATE_CONNECTING,
        detail="not every worker has found it in the registry",
    )
