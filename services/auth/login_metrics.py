"""Counts logins by what was shown and how it went. Whose they were is in the audit trail alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.metrics import Meter

from anabranch.v1 import errors_pb2
from services.chassis.counters import counted
from services.chassis.errors import Fault

CLIENT_SECRET = "client_secret"  # noqa: S105 - a label
API_KEY = "api_key"

# What is ours and not the caller's.
_OURS = frozenset(
    {
        errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        errors_pb2.ERROR_REASON_INTERNAL,
        errors_pb2.ERROR_REASON_OVERLOADED,
    }
)


class Logins:
    """The counter; its labels have six combinations."""

    def __init__(self, meter: Meter) -> None:
        count = meter.create_counter(
            "anabranch.auth.logins", description="Requests for an access token, by how they ended"
        )
        # All are there from the start: what appears with its first burst has no rate to alert on.
        self._add = {
            (grant, outcome): counted(count, {"grant": grant, "outcome": outcome})
            for grant in (CLIENT_SECRET, API_KEY)
            for outcome in ("ok", "refused", "error")
        }

    @contextmanager
    def counted(self, grant: str) -> Iterator[None]:
        """Around one login; who leaves before its end is not counted."""
        try:
            yield
        except Fault as fault:
            self._add[grant, "error" if fault.reason in _OURS else "refused"]()
            raise
        except Exception:
            self._add[grant, "error"]()
            raise
        self._add[grant, "ok"]()
