"""How processes find each other, and what they read together: filled by Consul, DNS or memory.

`open_registry` and `open_key_values` are the only places that know which kinds exist.
"""

from __future__ import annotations

from services.chassis.registry.freshness import Freshness
from services.chassis.registry.instances import (
    Instance,
    Registration,
    Registry,
    join_address,
    split_address,
)
from services.chassis.registry.key_values import Entry, KeyValues, KeyValuesUnavailable, check_key
from services.chassis.setting_values import Secret

__all__ = [
    "Entry",
    "Freshness",
    "Instance",
    "KeyValues",
    "KeyValuesUnavailable",
    "Registration",
    "Registry",
    "check_key",
    "join_address",
    "open_key_values",
    "open_registry",
    "split_address",
]


def open_registry(
    url: str,
    *,
    token: Secret | None = None,
    stale_for: float = 3600.0,
    grace: float = 10.0,
    freshness: Freshness | None = None,
) -> Registry:
    """The registry that `url` names; call it inside the event loop that will use it.

    - `consul://host:port?dc=name&ns=name&partition=name&tls=true&ca=path&cert=path&key=path`: a
      Consul agent; `ns` and `partition` (Enterprise) are where all is registered, watched and
      read. `token` is its ACL token; `stale_for` and `grace` (seconds) are explained in
      `last_known.py`.
    - `static:service=host:port,host:port;service2=host:port`: a fixed list.
    - `dns:service=host:port,host:port;service2=host:port?refresh=2s&family=any`: names that are
      resolved every `refresh`, each address of theirs an instance; `family` is any, ipv4 or ipv6.
    - `memory:name`: shared by everything in this process that opens the same name; for tests.
    - `none` (or empty): nobody else exists.

    `freshness` is told when it answers, and when it does not. Raises ValueError when the URL names
    none of these.
    """
    from services.chassis.registry import static_registry

    kind, _, rest = url.partition(":")
    freshness = freshness or Freshness()
    if kind == "consul":
        from services.chassis.registry import consul_registry

        return consul_registry.from_url(
            url, token=token, stale_for=stale_for, grace=grace, freshness=freshness
        )
    if kind == "dns":
        from services.chassis.registry import dns_registry

        return dns_registry.from_url(url, stale_for=stale_for, grace=grace, freshness=freshness)
    if kind == "static":
        return static_registry.StaticRegistry(static_registry.parse(rest), freshness)
    if kind == "memory":
        return static_registry.MemoryRegistry(static_registry.catalogue(rest), freshness)
    if url in ("", "none"):
        return static_registry.StaticRegistry({}, freshness)
    raise ValueError(f"a registry is consul://…, dns:…, static:…, memory:… or none, not {kind!r}")


def open_key_values(url: str, *, token: Secret | None = None) -> KeyValues:
    """The key/value store of the registry that `url` names; call it inside the event loop.

    Only `consul://…` and `memory:…` have one. Raises ValueError for another.
    """
    kind, _, rest = url.partition(":")
    if kind == "consul":
        from services.chassis.registry.consul_client import client_from_url
        from services.chassis.registry.consul_key_values import ConsulKeyValues

        return ConsulKeyValues(client_from_url(url, token))
    if kind == "memory":
        from services.chassis.registry.memory_key_values import MemoryKeyValues, shelf

        return MemoryKeyValues(shelf(rest))
    raise ValueError(f"only a registry consul://… holds keys and values, not {kind or 'none'!r}")
