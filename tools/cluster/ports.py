"""Chooses the ports of a cluster: the documented ones, or free ones nobody else will take.

It only looks; a port is taken when its process binds it.
"""

from __future__ import annotations

import random
import socket

HOST = "127.0.0.1"

_LOWEST, _HIGHEST = 20_000, 32_000
"""Below the range from which Linux takes the ports of outgoing connections, so that none of
those can be in the way between the choice and the bind."""

_given: set[int] = set()
_random = random.SystemRandom()


def is_free(port: int) -> bool:
    """Whether somebody could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that is free now and that this function has not given before."""
    for _ in range(1000):
        port = _random.randrange(_LOWEST, _HIGHEST)
        if port not in _given and is_free(port):
            _given.add(port)
            return port
    raise RuntimeError(f"no free port between {_LOWEST} and {_HIGHEST}")
