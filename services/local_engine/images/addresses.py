"""Which addresses images may be fetched from: the operator's list, and the networks behind. Pure.

Judges names before anything is resolved, and numbers after. It connects to nothing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Number = ipaddress.IPv4Address | ipaddress.IPv6Address

LONGEST = 2048  # characters of an address
_PLAIN = re.compile(r"[\x21-\x7e]+\Z")
_REST = r"(?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?:[a-z0-9]{_REST}\.)*[a-z]{_REST}\Z")
"""A name whose last label begins with a letter: no number in any of its spellings is one."""
_CONTROL = re.compile(r"%(?:[01][0-9a-f]|7f|(?![0-9a-f]{2}))", re.IGNORECASE)
"""A control character, or what is no character at all: nowhere in an address."""
_HIDDEN = re.compile(r";|%(?:2[e35f]|3[bf]|5c)", re.IGNORECASE)
"""Parameters, and what ends or joins parts of a path for those who decode it before they split it:
nowhere in a path. In a query, signed addresses hold them."""
_GLOBAL = ipaddress.ip_network("2000::/3")
"""All that is allotted of IPv6; see IANA's registry of its address space."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NEVER: tuple[Network, ...] = tuple(
    map(
        ipaddress.ip_network,
        ("168.63.129.16/32", "192.0.0.0/24", "3fff::/20"),
    )
)
"""Not public though older Pythons say so, or public and yet a cloud's own control plane: the first
is Azure's wire server, the second holds Oracle's metadata service."""


@dataclass(frozen=True, slots=True)
class Place:
    """One entry of the list: a host, or all names below one, a port, and how paths begin."""

    host: str
    below: bool
    port: int
    prefix: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """From host, *.host, host:port or any of them with /path/. Raises ValueError."""
        place, slash, rest = text.removeprefix("https://").partition("/")
        below = place.startswith("*.")
        host, colon, port = place.removeprefix("*.").partition(":")
        number = int(port) if colon and port.isdecimal() and len(port) < 6 else 443
        if not _HOST.match(host) or (colon and not (port.isdecimal() and 0 < number < 65536)):
            raise ValueError(
                f"holds {text!r}, which is no host such as images.example.org, *.example.org or "
                "images.example.org/public/"
            )
        return cls(host, below, number, slash + rest if rest else "/")

    def covers(self, host: str, port: int, path: str) -> bool:
        """Whether an address is in this place. A prefix ends where a part of the path does."""
        named = host.endswith(f".{self.host}") if self.below else host == self.host
        whole = self.prefix if self.prefix.endswith("/") else self.prefix + "/"
        return named and port == self.port and (path == self.prefix or path.startswith(whole))


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """From CIDR notation. Raises ValueError."""
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError:
            raise ValueError(f"holds {text!r}, which is no network such as 10.20.0.0/16") from None
    return tuple(networks)


def is_allowed(uri: str, places: Sequence[Place]) -> bool:
    """Whether an address may be fetched, as it is spelled. What is odd about it counts against it:
    two programs may read it differently."""
    if len(uri) > LONGEST or not _PLAIN.match(uri) or "\\" in uri or _CONTROL.search(uri):
        return False
    try:
        parts = urlsplit(uri)
        port = parts.port or 443
    except ValueError:
        return False
    host = parts.hostname or ""
    spelled = (host, f"{host}:{port}")
    if parts.scheme != "https" or parts.netloc not in spelled or not _HOST.match(host):
        return False
    path = parts.path or "/"
    if (
        "#" in uri
        or _HIDDEN.search(path)
        or not path.startswith("/")
        or not {".", ".."}.isdisjoint(path.split("/"))
    ):
        return False
    return any(place.covers(host, port, path) for place in places)


def may_connect(number: str, allowed: Sequence[Network]) -> bool:
    """Whether an IP address is public, or in one of the networks allowed besides."""
    try:
        found: Number = ipaddress.ip_address(number.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found in _NAT64:
            # Only where the operator says that there is a translator, and then as what is behind.
            behind = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
            return _within(found, allowed) and may_connect(str(behind), allowed)
        if _holds_ipv4(found):
            return False
        if found not in _GLOBAL and not _within(found, allowed):
            return False
    if found.is_multicast or found.is_unspecified:
        return False
    return _within(found, allowed) or (found.is_global and not _within(found, _NEVER))


def _holds_ipv4(number: ipaddress.IPv6Address) -> bool:
    """Mapped, 6to4, Teredo and ISATAP: these lead to an IPv4 address that is not looked at."""
    isatap = (int(number) >> 32) & 0xFDFFFFFF == 0x00005EFE
    return bool(number.ipv4_mapped or number.sixtofour or number.teredo or isatap)


def _within(number: Number, networks: Sequence[Network]) -> bool:
    return any(number in network for network in networks if network.version == number.version)
