"""What operators read and write of the routing policy, on the wire.

Translates between messages and the policy package; what is in force is decided there.
"""

from __future__ import annotations

import asyncio
import logging

from anabranch.v1 import admin_pb2
from services.chassis.errors import Violation, invalid
from services.chassis.principal import current_principal
from services.router.policy.problems import BadPolicy
from services.router.policy.source import PolicySource
from services.router.policy.store import PolicyStore

_log = logging.getLogger(__name__)


class PolicyUpdates:
    """GetPolicy and UpdatePolicy of one router process."""

    def __init__(self, store: PolicyStore, source: PolicySource) -> None:
        self._store = store
        self._source = source

    @property
    def version(self) -> str:
        """The version in force here."""
        return self._store.current().version

    def get(self) -> admin_pb2.GetPolicyResponse:
        """The policy in force, and what is wrong with a newer one."""
        rejected = self._store.rejected
        return admin_pb2.GetPolicyResponse(
            policy_yaml=self._store.text,
            version=self.version,
            source=str(self._store.source),
            rejected=rejected.lines() if rejected is not None else (),
        )

    async def update(
        self, request: admin_pb2.UpdatePolicyRequest
    ) -> admin_pb2.UpdatePolicyResponse:
        """Checks a document whole, then has it put in force."""
        try:
            document = await asyncio.to_thread(self._store.read, request.policy_yaml)
        except BadPolicy as bad:
            raise invalid(
                [
                    Violation(problem.where or "policy_yaml", problem.said)
                    for problem in bad.problems
                ]
            ) from None
        version = document.policy.version
        _log.info(
            "policy update by operator",
            extra={"version": version, "client": current_principal().client_id},
        )
        await self._source.write(document, request.expected_version)
        return admin_pb2.UpdatePolicyResponse(version=version)
