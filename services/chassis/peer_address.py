"""Where a call comes from: the transport's word, or a trusted proxy's. Pure.

A header that anybody may write is believed only as far as the proxies that are configured wrote
it: from the right, past those of them, up to the first address that is none of theirs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

from services.chassis.principal import NOWHERE, Address, Network, is_within

FORWARDED_FOR = "x-forwarded-for"

_MOST_HOPS = 32


def networks_of(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks in CIDR notation, or single addresses. Raises ValueError naming the first bad one.

    Host bits must be zero: 10.0.0.1/8 is more likely a mistake than a network. Neither is one of
    IPv4 in IPv6 clothes, or with a zone: callers' addresses have neither here, and are in none.
    """
    found: list[Network] = []
    for text in texts:
        try:
            network = ipaddress.ip_network(text)
            if "%" in text or getattr(network.network_address, "ipv4_mapped", None) is not None:
                raise ValueError(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a network such as 10.0.0.0/8") from None
        found.append(network)
    return tuple(found)


def peer_address(peer: str) -> Address:
    """The address of a peer in gRPC's spelling, such as ipv4:10.0.0.1:40000."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return NOWHERE
    host = unquote(rest.rpartition(":")[0])
    return _read(host.removeprefix("[").removesuffix("]"))


def caller_address(
    peer: Address, forwarded_for: Sequence[str], trusted_proxies: Sequence[Network]
) -> Address:
    """The caller's own address, as far as trusted proxies vouch for it.

    `forwarded_for` holds the values of the header in the order in which they came.
    """
    address = peer
    if not trusted_proxies or not is_within(address, trusted_proxies):
        return address
    hops = [hop.strip() for value in forwarded_for for hop in value.split(",")]
    for hop in reversed(hops[-_MOST_HOPS:]):
        address = _read(_without_port(hop))
        if not is_within(address, trusted_proxies):
            return address
    return address


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    host, colon, port = hop.rpartition(":")
    return host if colon and port.isdecimal() and ":" not in host else hop


def _read(text: str) -> Address:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return NOWHERE
    # A dual-stack socket sees callers over IPv4 as ::ffff:a.b.c.d; networks are written as IPv4.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
