"""Finds the address that a call comes from: of its transport, of a trusted proxy, of a sibling.

What may be believed is peer_address.py's; who is a sibling is known by the server that asks.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from services.chassis.peer_address import FORWARDED_FOR, caller_address, peer_address
from services.chassis.principal import Address, Network

SIBLINGS_CALLER = "x-anabranch-caller"
"""Metadata in which a sibling process, and nobody else, says where its caller is."""


class Origin:
    """Where the calls to one server come from.

    `trusted_proxies` are believed about the callers they forward. `siblings`: only processes of
    this service reach the server, over a socket that is theirs.
    """

    def __init__(self, trusted_proxies: Sequence[Network] = (), *, siblings: bool = False) -> None:
        self._trusted = tuple(trusted_proxies)
        self._siblings = siblings

    def of(self, context: grpc.aio.ServicerContext) -> Address | None:
        """The caller's address; None for a sibling that speaks for itself."""
        if self._siblings:
            said = _values(context, SIBLINGS_CALLER)
            return peer_address(said[0]) if said else None
        peer = peer_address(context.peer())
        if not self._trusted:
            return peer
        return caller_address(peer, _values(context, FORWARDED_FOR), self._trusted)


def sibling_metadata(address: Address | None) -> tuple[tuple[str, str], ...]:
    """What a process tells its sibling about the caller whom it brings."""
    if address is None:
        return ()
    spelled = f"ipv6:[{address}]:0" if address.version == 6 else f"ipv4:{address}:0"
    return ((SIBLINGS_CALLER, spelled),)


def _values(context: grpc.aio.ServicerContext, name: str) -> list[str]:
    found = context.invocation_metadata() or ()
    return [value for key, value in found if key == name and isinstance(value, str)]
