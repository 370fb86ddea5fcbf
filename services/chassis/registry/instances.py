"""What the registry is about: instances, registrations, and the role that every registry plays.

Values and a protocol only; the kinds of registry are in the modules beside this one.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")
_META_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
_NO_META: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Instance:
    """One process that offers a service at `address` ("host:port").

    `weight` is its share of work beside the others', where somebody goes by weights.
    """

    id: str
    service: str
    address: str
    meta: Mapping[str, str] = field(default_factory=lambda: _NO_META, hash=False)
    weight: int = 1


@dataclass(frozen=True)
class Registration:
    """What a process tells the registry about itself.

    `health_address` ("host:port", by default `address`) is where the registry itself asks
    grpc.health.v1; `health_tls` says that it must use TLS there. `meta` is bounded by what Consul
    accepts: 64 entries, keys of 128 letters, digits, `-` and `_`, values of 512 characters; so is
    `weight`, 1 to 65535.

    Raises ValueError when built from values that no registry could hold.
    """

    service: str
    id: str
    address: str
    meta: Mapping[str, str] = field(default_factory=lambda: _NO_META, hash=False)
    health_address: str = ""
    health_tls: bool = False
    weight: int = 1

    def __post_init__(self) -> None:
        for name in (self.service, self.id):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a service or an instance")
        split_address(self.address)
        if self.health_address:
            split_address(self.health_address)
        if not 0 < self.weight < 65536:
            raise ValueError(f"a weight is between 1 and 65535, not {self.weight}")
        if len(self.meta) > 64:
            raise ValueError(f"{len(self.meta)} entries of metadata are more than 64")
        for key, value in self.meta.items():
            if not _META_KEY.fullmatch(key) or len(value) > 512:
                raise ValueError(f"metadata {key!r} is not held by the registry")


class Registry(Protocol):
    """Where processes find each other."""

    async def register(self, r: Registration) -> None:
        """Keeps `r` registered, replacing an earlier one of the same id, until deregistered.

        Returns after the first attempt even if it failed: a registry that is down does not stop
        a service from starting. Further attempts follow in the background.
        """

    async def deregister(self, id: str) -> None:
        """Ends a registration. Unknown ids and a registry that is down are no errors."""

    def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        """The healthy instances, ordered by id: the present set first, then each changed one.

        While the registry does not answer nothing is yielded, so what was yielded last stays
        in force. An empty set is yielded only if the registry said so, or when it has been
        silent for the configured time. Ends when the registry is closed.
        """

    async def close(self) -> None:
        """Ends every watch and releases what is held.

        Deregister first: what is still registered stays until the registry's own check fails.
        """


def split_address(address: str) -> tuple[str, int]:
    """("host", port) of "host:port", brackets around an IPv6 host removed; ValueError otherwise."""
    host, colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or (":" in bare and bare == host) or set(bare) & set("/ ,;=@?#"):
        raise ValueError(f"{address!r} is not host:port")
    if not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} has no port between 1 and 65535")
    return bare, int(port)


def join_address(host: str, port: int) -> str:
    """The text host:port, with brackets where the host is an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
