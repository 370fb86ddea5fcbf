"""Whether a caller may manage what it asks to: whose tenant it is, and what it may hand on.

`admin` manages every tenant. `tenant-admin` manages its own, and there only what has no more than
itself: else it could take over a stronger client by replacing its secret.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from anabranch.v1 import errors_pb2
from services.auth.core.roles import ADMIN
from services.auth.entitlements import Entitlement, of_caller
from services.chassis.errors import Fault
from services.chassis.model_patterns import ANY, common
from services.chassis.principal import Principal, denied


@dataclass(frozen=True, slots=True)
class Authority:
    """What a caller may do to clients and keys."""

    client_id: str
    tenant: str
    held: Entitlement

    def still(self, now: Entitlement) -> Authority:
        """What is left of it for a client that has this now: a token may say more than is so."""
        held = self.held
        return replace(
            self,
            held=Entitlement(
                tuple(scope for scope in held.scopes if scope in now.scopes),
                common(held.models, now.models),
                now.networks or held.networks,
            ),
        )

    def check_everywhere(self) -> None:
        """Raises Fault ACCESS_DENIED for who is not, or no longer, everybody's administrator."""
        if not self.everywhere:
            raise denied(frozenset({ADMIN}))

    @property
    def everywhere(self) -> bool:
        """Whether every tenant is its business."""
        return ADMIN in self.held.scopes

    @property
    def own_tenant(self) -> str | None:
        """The tenant that lists are cut to; None: all."""
        return None if self.everywhere else self.tenant

    @property
    def models(self) -> tuple[str, ...]:
        """The models that it may hand on."""
        return (ANY,) if self.everywhere else self.held.models

    @property
    def networks(self) -> tuple[str, ...]:
        """Where what it makes may be used from, unless that is said; none: everywhere."""
        return () if self.everywhere else self.held.networks

    def check_tenant(self, tenant: str) -> None:
        """Raises Fault ACCESS_DENIED for what is of another tenant, in the words for what does
        not exist."""
        if not self.everywhere and tenant != self.tenant:
            raise not_yours()

    def check_manages(self, tenant: str, target: Entitlement) -> None:
        """Raises Fault ACCESS_DENIED for a client of another tenant or with more than this one."""
        self.check_tenant(tenant)
        if self.held.lacking(target):
            raise Fault(
                errors_pb2.ERROR_REASON_ACCESS_DENIED,
                "the client has more than the caller, who therefore may not manage it",
            )

    def check_grants(self, wanted: Entitlement) -> None:
        """Raises Fault ACCESS_DENIED for scopes, models and networks that it may not hand on."""
        missing = self.held.lacking(wanted)
        if missing:
            raise Fault(
                errors_pb2.ERROR_REASON_ACCESS_DENIED,
                f"the caller may not grant: {', '.join(missing)}",
            )

    def no_such(self, what: str, **named: str) -> Fault:
        """NOT_FOUND for who may see everything; for others the same as for what is not theirs."""
        if not self.everywhere:
            return not_yours()
        return Fault(errors_pb2.ERROR_REASON_NOT_FOUND, f"no such {what}", metadata=named)


def authority_of(principal: Principal) -> Authority:
    """The authority that a verified token gives."""
    return Authority(principal.client_id, principal.tenant, of_caller(principal))


def not_yours() -> Fault:
    """One answer for another tenant's and for what does not exist."""
    return Fault(
        errors_pb2.ERROR_REASON_ACCESS_DENIED, "the caller's tenant has nothing of this name"
    )
