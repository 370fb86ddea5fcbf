"""The text that lists which service is at which addresses: `service=host:port,host:port;…`. Pure.

What is done with the addresses is static_registry.py's and dns_registry.py's.
"""

from __future__ import annotations

from services.chassis.registry.instances import split_address


def parse(text: str, kind: str) -> dict[str, tuple[str, ...]]:
    """The addresses of each service, as written; ValueError, which names `kind`, for another text.

    A comma may also be followed by `service=`, so that both separators read naturally.
    """
    found: dict[str, list[str]] = {}
    for group in text.split(";"):
        service = ""
        for item in filter(None, (part.strip() for part in group.split(","))):
            named, equals, address = item.rpartition("=")
            service = named.strip() if equals else service
            if not service:
                raise ValueError(f"{kind} registry: {item!r} belongs to no service")
            address = address.strip()
            split_address(address)
            addresses = found.setdefault(service, [])
            if address in addresses:
                raise ValueError(f"{kind} registry: {address} is listed twice for {service}")
            addresses.append(address)
    return {service: tuple(addresses) for service, addresses in found.items()}
