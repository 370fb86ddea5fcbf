"""Who calls: the identity that a verified credential gives, and what it may do where.

Values and the refusals that go with them. How a credential is verified is authn.py's.
"""

from __future__ import annotations

import contextvars
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from anabranch.v1 import errors_pb2
from services.chassis.audit.detail import AuditDetail
from services.chassis.encryption.ciphers import CipherName
from services.chassis.errors import Fault
from services.chassis.model_patterns import allows
from services.chassis.quotas.rules import QuotaRule

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

RELAY = "relay"
GENERATE = "generate"

NOWHERE: Address = ipaddress.IPv6Address("100::")
"""Of the discard prefix (RFC 6666): stands for an address that cannot be read."""


def is_within(address: Address, networks: Iterable[Network]) -> bool:
    """Whether one of the networks has this address. None has NOWHERE, not even ::/0."""
    return address != NOWHERE and any(address in network for network in networks)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, as a verified token says. `expires_at` is in Unix seconds.

    `models` are the patterns of models that it may ask; none means no model. `networks` are those
    that it may call from; none means from everywhere. `quotas` hold for its requests.
    `api_key_id` names the key that the token was issued for, if one was. `audit_detail` and
    `cipher` say how its tenant wants its requests written down (audit/, encryption/).
    `signing_key` is the id of the key that signed the token. `relayed_by` is the client that
    speaks for this one, which then is what that client says.
    """

    client_id: str
    tenant: str
    scopes: frozenset[str]
    expires_at: float
    token_id: str
    models: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    quotas: tuple[QuotaRule, ...] = ()
    api_key_id: str = ""
    audit_detail: AuditDetail = AuditDetail.METADATA
    cipher: CipherName = CipherName.AES_256_GCM
    signing_key: str = ""
    relayed_by: str = ""

    def has(self, scope: str) -> bool:
        """Whether the token carries this scope."""
        return scope in self.scopes

    def check_model(self, model: str) -> None:
        """Raises Fault ACCESS_DENIED for a model that it may not ask, existing or not.

        Who relays has checked its callers itself, by the names that they used.
        """
        if RELAY not in self.scopes and not allows(self.models, model):
            raise Fault(
                errors_pb2.ERROR_REASON_ACCESS_DENIED,
                "the credential does not allow this model",
            )

    def check_address(self, address: Address | None) -> None:
        """Raises Fault ACCESS_DENIED for an address outside its networks.

        None stands for a sibling process, which has checked the caller's own.
        """
        if address is None or not self.networks:
            return
        if not is_within(address, self.networks):
            raise Fault(
                errors_pb2.ERROR_REASON_ACCESS_DENIED,
                "the credential may not be used from this address",
            )


@dataclass(frozen=True, slots=True)
class Caller:
    """Who the RPC being handled comes from; the address is None inside one host."""

    principal: Principal | None
    address: Address | None


_current: contextvars.ContextVar[Caller | None] = contextvars.ContextVar(
    "anabranch_caller", default=None
)


def current_principal() -> Principal:
    """The caller of the RPC being handled.

    Raises Fault CREDENTIAL_REJECTED in a public RPC, where nobody is known.
    """
    caller = _current.get()
    if caller is None or caller.principal is None:
        raise rejected()
    return caller.principal


def known_principal() -> Principal | None:
    """The caller of the RPC being handled, as far as it is known."""
    caller = _current.get()
    return None if caller is None else caller.principal


def current_address() -> Address | None:
    """Where the RPC being handled comes from; None for a sibling process or outside of RPCs."""
    caller = _current.get()
    return None if caller is None else caller.address


def set_current_caller(principal: Principal | None, address: Address | None) -> None:
    """Called by the authentication guard, once for each RPC."""
    _current.set(Caller(principal, address))


def rejected() -> Fault:
    """One text for every bad credential, so that nothing can be learnt from it."""
    return Fault(
        errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED,
        "no valid credential: send metadata 'authorization: Bearer <token>' with a live token",
    )


def denied(needed: frozenset[str]) -> Fault:
    """The credential is good, but carries none of the scopes that open the RPC."""
    wanted = " or ".join(sorted(needed)) or "another identity"
    return Fault(
        errors_pb2.ERROR_REASON_ACCESS_DENIED, f"the credential does not allow this: needs {wanted}"
    )
