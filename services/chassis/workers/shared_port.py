"""The port that all workers listen on: reserved by the supervisor.

Linux only, as is the even spread of connections over listeners that share a port.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from services.chassis.registry.instances import join_address

_ANY = ("", "*")


@contextmanager
def reserved(listen: str) -> Iterator[str]:
    """Holds the port of `listen` ("host:port", port 0 takes any) and yields its address.

    The port is bound but not listened on, so no connection arrives here; processes of the same
    user may listen on it with SO_REUSEPORT. Raises OSError when anybody else has it,
    ValueError when `listen` is not host:port.
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"{listen!r} is not host:port")
    bare = host.removeprefix("[").removesuffix("]")
    found = socket.getaddrinfo(
        "::" if bare in _ANY and socket.has_dualstack_ipv6() else bare or "0.0.0.0",  # noqa: S104
        int(port),
        type=socket.SOCK_STREAM,
        flags=socket.AI_PASSIVE,
    )
    with ExitStack() as held:
        number = int(port)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            wanted = (address[0], number, *address[2:])
            try:
                if number:
                    _refuse_shared(family, wanted)
                one = held.enter_context(socket.socket(family, kind, protocol))
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                one.bind(wanted)
            except OSError as error:
                raise OSError(f"cannot listen on {listen}: {error.strerror}") from error
            number = one.getsockname()[1]
        yield join_address(bare, number) if bare else f"{host}:{number}"


def _refuse_shared(family: int, address: tuple[object, ...]) -> None:
    """Raises OSError when somebody is there already, even somebody who would share."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
