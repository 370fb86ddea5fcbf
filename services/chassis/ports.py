"""Which gRPC addresses a process has, and what the registry is told of them.

It binds and computes; what is served there is the host's.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Mapping

from services.chassis.common_settings import CommonSettings
from services.chassis.http2.listeners import ContextSource
from services.chassis.http2.server import Server
from services.chassis.registry import Registration, join_address, split_address
from services.chassis.settings import SettingsError
from services.chassis.tls import Tls

_log = logging.getLogger(__name__)

_EVERY_INTERFACE = ("", "0.0.0.0", "[::]", "*")  # noqa: S104 - recognised, not bound


async def bind(
    server: Server, listen: str, *, reuse_port: bool = False, tls: ContextSource | None = None
) -> str:
    """Binds `listen` and returns its "host:port". Raises OSError that says why it cannot be had."""
    try:
        port = await server.listen(listen, reuse_port=reuse_port, tls=tls)
    except OSError as exc:
        why = "is the port in use?" if exc.errno == errno.EADDRINUSE else exc
        raise OSError(f"cannot listen on {listen}: {why}") from exc
    return f"{listen.rpartition(':')[0]}:{port}"


# Registries that tell others nothing of this process: they know by themselves where it is.
_TELLS_NOBODY = ("", "none", "dns", "static")


def require_address(settings: CommonSettings) -> None:
    """Others cannot call a wildcard: what they should call must be said. Raises SettingsError."""
    told = settings.registry.partition(":")[0] not in _TELLS_NOBODY
    if told and _is_wildcard(settings.listen) and not settings.advertise:
        raise SettingsError(
            [
                f"ADVERTISE is required with LISTEN={settings.listen}: the host:port at "
                "which others reach this process"
            ]
        )


def told_address(settings: CommonSettings, address: str) -> str:
    """Where others are told that this process is; a wildcard becomes the machine's name."""
    if settings.advertise or not _is_wildcard(address):
        return settings.advertise or address
    return join_address(socket.gethostname(), int(address.rpartition(":")[2]))


def registration(
    service: str,
    id: str,
    settings: CommonSettings,
    *,
    address: str,
    health: str,
    tls: bool,
    meta: Mapping[str, str],
) -> Registration:
    """What the registry is told: `address` and `health` are bound ones, `health` may be empty.

    The health port is asked in plain text, at the host that the process is advertised at unless
    it has an address of its own.
    """
    told = told_address(settings, address)
    if health and _is_wildcard(health):
        host, _ = split_address(told)
        health = join_address(host, int(health.rpartition(":")[2]))
    return Registration(
        service=service,
        id=id,
        address=told,
        meta=meta,
        health_address=health,
        health_tls=tls and not health,
        weight=settings.registry_weight,
    )


def warn_of_certificates(service: str, settings: CommonSettings, tls: Tls) -> None:
    """Says what will keep others from reaching this process, though nothing here is wrong."""
    if service not in tls.present.names:
        _log.warning(
            "the certificate does not hold the service's name: other services will refuse it",
            extra={"names": ",".join(tls.present.names), "wanted": service},
        )
    if tls.client_auth and not settings.health_listen and settings.registry.startswith("consul:"):
        _log.warning(
            "Consul needs a client certificate for its health check; HEALTH_LISTEN gives it a "
            "plaintext port"
        )


def _is_wildcard(address: str) -> bool:
    return address.rpartition(":")[0] in _EVERY_INTERFACE
