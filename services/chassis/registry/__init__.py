"""How processes find each other: one role, filled by Consul, by a fixed list or by memory.

`open_registry` is the only place that knows which kinds exist.
"""

from __future__ import annotations

from services.chassis.registry.instances import (
    Instance,
    Registration,
    Registry,
    join_address,
    split_address,
)
from services.chassis.setting_values import Secret

__all__ = [
    "Instance",
    "Registration",
    "Registry",
    "join_address",
    "open_registry",
    "split_address",
]


def open_registry(
    url: str, *, token: Secret | None = None, stale_for: float = 3600.0, grace: float = 10.0
) -> Registry:
    """The registry that `url` names; call it inside the event loop that will use it.

    - `consul://host:port?dc=name&tls=true&ca=path&cert=path&key=path`: a Consul agent. `token` is
      its ACL token; `stale_for` and `grace` (seconds) are explained in `last_known.py`.
    - `static:service=host:port,host:port;service2=host:port`: a fixed list.
    - `memory:name`: shared by everything in this process that opens the same name; for tests.
    - `none` (or empty): nobody else exists.

    Raises ValueError when the URL names none of these.
    """
    from services.chassis.registry import static_registry

    kind, _, rest = url.partition(":")
    if kind == "consul":
        from services.chassis.registry import consul_registry

        return consul_registry.from_url(url, token=token, stale_for=stale_for, grace=grace)
    if kind == "static":
        return static_registry.StaticRegistry(static_registry.parse(rest))
    if kind == "memory":
        return static_registry.MemoryRegistry(static_registry.catalogue(rest))
    if url in ("", "none"):
        return static_registry.StaticRegistry({})
    raise ValueError(f"a registry is consul://…, static:…, memory:… or none, not {kind!r}")
