"""Chooses the ports of a cluster: the documented ones, or free ones nobody else will take.

It only looks; a port is taken when its process binds it. Until then, and for as long as the
choosing process lives, a record lock keeps the port from every other process that chooses here:
an engine binds its port seconds after the choice, and tests and clusters run beside each other.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from functools import cache
from pathlib import Path

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
    """A port that is free now and that nobody was given who still runs.

    Raises RuntimeError when a thousand guesses find none.
    """
    for _ in range(1000):
        port = _random.randrange(_LOWEST, _HIGHEST)
        # In this order: one that is bound is not worth a lock for the rest of this process.
        if port not in _given and is_free(port) and _lock(port):
            _given.add(port)
            return port
    raise RuntimeError(f"no free port between {_LOWEST} and {_HIGHEST}")


def _lock(port: int) -> bool:
    """Whether no other process holds this port's byte; if so, this one holds it until it ends."""
    try:
        fcntl.lockf(_locks(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except BlockingIOError:
        return False
    return True


@cache
def _locks() -> int:
    """The file of which each port has a byte. It is never closed: closing would drop the locks."""
    path = Path(tempfile.gettempdir(), f"anabranch-ports-{os.getuid()}.lock")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
