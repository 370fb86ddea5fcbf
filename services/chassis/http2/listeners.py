"""Bound addresses, and accepting connections there under TLS whose certificates may change.

Who answers on the connections is known to the server (server.py); certificates to chassis/tls.py.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any

_log = logging.getLogger(__name__)

BACKLOG = 1024
_AT_ONCE = 64
# Who connects and says nothing, or nothing that leads anywhere, is gone after this.
_HANDSHAKE_S = 5.0
_GOODBYE_S = 2.0
_SILENCE_S = 5.0
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_OUT_OF_RESOURCES_PAUSE_S = 1.0

ContextSource = Callable[[], ssl.SSLContext]


class TlsListener:
    """Accepts connections on one bound socket, which it owns; `make` makes their protocols.

    Each handshake is under the context that `tls` gives at that moment. The loop's own servers
    keep one context for life, and asyncio's drop what they have just accepted when they close, so
    that one cannot take another's place without loss.
    """

    def __init__(
        self,
        make: Callable[[], asyncio.BaseProtocol],
        bound: socket.socket,
        tls: ContextSource,
    ) -> None:
        self._make = make
        self._bound = bound
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._untold = 0
        self._silent_until = 0.0
        self._pause: asyncio.TimerHandle | None = None

    async def start_serving(self) -> None:
        """Accepts from here on."""
        self._bound.listen(BACKLOG)
        self._loop.add_reader(self._bound, self._accept)

    def close(self) -> None:
        """Accepts no more. Connections that are open go on, and so do handshakes."""
        if self._pause is not None:
            self._pause.cancel()
        if self._bound.fileno() >= 0:
            self._loop.remove_reader(self._bound)
            self._bound.close()

    async def wait_closed(self) -> None:
        """Ends the handshakes that are still under way. After `close`."""
        for task in self._handshakes:
            task.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                accepted, _ = self._bound.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as failed:
                if failed.errno not in _OUT_OF_RESOURCES:
                    raise
                # The socket stays readable: without a pause nothing else would be done.
                _log.error("no connection can be accepted", extra={"cause": failed.strerror})
                self._loop.remove_reader(self._bound)
                self._pause = self._loop.call_later(
                    _OUT_OF_RESOURCES_PAUSE_S, self._loop.add_reader, self._bound, self._accept
                )
                return
            task = self._loop.create_task(self._handshake(accepted))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _handshake(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._loop.connect_accepted_socket(
                self._make,
                accepted,
                ssl=self._tls(),
                ssl_handshake_timeout=_HANDSHAKE_S,
                ssl_shutdown_timeout=_GOODBYE_S,
            )
        except OSError as failed:
            self._tell(failed)

    def _tell(self, failed: OSError) -> None:
        """The peer does not hear why: asyncio sends no alert. But nobody may fill the log."""
        self._untold += 1
        if self._loop.time() < self._silent_until:
            return
        self._silent_until = self._loop.time() + _SILENCE_S
        extra = {"cause": str(failed) or type(failed).__name__, "failures": self._untold}
        _log.info("TLS handshakes failed", extra=extra)
        self._untold = 0


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
