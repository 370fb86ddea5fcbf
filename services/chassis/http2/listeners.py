"""Bound addresses, and accepting connections there, in plain text or under TLS that may change.

Who answers on the connections is known to the server (server.py); certificates to chassis/tls.py.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any

_BACKLOG = 1024
# Who connects and says nothing, or nothing that leads anywhere, is gone after this.
_HANDSHAKE_S = 5.0
_TLS_GOODBYE_S = 2.0

ContextSource = Callable[[], ssl.SSLContext]


class Listener:
    """Accepts connections on one bound socket, which it owns; `make` makes their protocols.

    With `tls`, connections begin with a handshake under the context that it gives when the
    listener is opened, and after each `renew`.
    """

    def __init__(
        self,
        make: Callable[[], asyncio.BaseProtocol],
        bound: socket.socket,
        tls: ContextSource | None,
    ) -> None:
        self._make = make
        self._bound = bound
        self._tls = tls
        self._accepting: asyncio.AbstractServer | None = None
        self._started = False

    async def open(self) -> None:
        """Makes ready; accepts nothing yet."""
        self._accepting = await self._accept()

    async def start(self) -> None:
        """Accepts from here on."""
        self._started = True
        if self._accepting is not None:
            await self._accepting.start_serving()

    async def renew(self) -> None:
        """Meets new connections with the present TLS context; those that are open go on.

        The socket never stops to listen, so whoever connects meanwhile is met by one or the other.
        """
        if self._tls is None or self._is_closed():
            return
        successor = await self._accept()
        if self._is_closed():
            successor.close()
            return
        previous, self._accepting = self._accepting, successor
        if previous is not None:
            previous.close()

    def close(self) -> None:
        """Accepts no more; connections that are open go on."""
        if self._accepting is not None:
            self._accepting.close()
        self._bound.close()

    def _is_closed(self) -> bool:
        return self._bound.fileno() < 0

    async def _accept(self) -> asyncio.AbstractServer:
        loop = asyncio.get_running_loop()
        secured: dict[str, Any] = {}
        if self._tls is not None:
            secured = {
                "ssl": self._tls(),
                "ssl_handshake_timeout": _HANDSHAKE_S,
                "ssl_shutdown_timeout": _TLS_GOODBYE_S,
            }
        # A descriptor of its own for the same socket: closing one does not close the others.
        shared = self._bound.dup()
        try:
            return await loop.create_server(
                self._make, sock=shared, backlog=_BACKLOG, start_serving=self._started, **secured
            )
        except BaseException:
            shared.close()
            raise


def dns_names(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The DNS names that a peer's verified certificate holds, as a transport tells it."""
    alternatives = (certificate or {}).get("subjectAltName", ())
    return tuple(value for kind, value in alternatives if kind == "DNS")


def bound(address: str, *, reuse_port: bool) -> list[socket.socket]:
    """Sockets that are bound but do not listen. Raises OSError when the address cannot be had.

    An empty host and "[::]" mean every address of either family.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise OSError(f"{address!r} is not host:port")
    bare = host.removeprefix("[").removesuffix("]")
    dual = bare in ("", "*", "::") and socket.has_dualstack_ipv6()
    if bare in ("", "*"):
        bare = "::" if dual else "0.0.0.0"  # noqa: S104 - what an empty host asks for
    found = socket.getaddrinfo(bare, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    number = int(port)
    try:
        for family, kind, protocol, _, target in dict.fromkeys(found):
            one = socket.socket(family, kind, protocol)
            sockets.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
            one.setblocking(False)
            one.bind((target[0], number, *target[2:]))
            number = one.getsockname()[1]
    except OSError:
        for one in sockets:
            one.close()
        raise
    return sockets
