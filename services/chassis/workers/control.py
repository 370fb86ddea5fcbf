"""The line between the supervisor and one worker: JSON objects over a socket pair, one a line.

Either side's death is the end of the line, which is how the other learns of it. What the messages
mean is known to supervisor.py and worker.py.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

# worker → supervisor
REACHABLE = "reachable"
"""Its private sockets answer; the supervisor replies with STATE."""
SERVING = "serving"
"""It answers on the shared port; `registration` is what the registry is to hold."""
SHARE = "share"
"""`key` is `value` from now on for every worker, later ones included (null removes it); with
`after`, only if the key's revision is that one."""
FAILED = "failed"
"""It cannot run; `cause` says why."""

# supervisor → worker
STATE = "state"
"""Everything that was shared before, as `shared`, and each key's revision, as `revisions`."""
SHARED = "shared"
"""`key` became `value`, for the `revision`th time that it was shared."""
ROSTER = "roster"
"""`workers`: index, number and whether it serves, of every worker that is reachable."""
RETIRE = "retire"
"""Finish what you have and end: others go on serving the port."""
STOP = "stop"
"""Shut down: the whole service does."""

_LONGEST = 1024 * 1024


class Line:
    """One end of the line. Made by `open`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Line:
        """Takes over one end of a socket pair."""
        end.setblocking(False)
        return cls(*await asyncio.open_connection(sock=end, limit=_LONGEST))

    def send(self, kind: str, **fields: Any) -> None:
        """Sends a message; without effect when the other side is gone."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps({"kind": kind, **fields}).encode() + b"\n")

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Every message until the other side is gone."""
        while True:
            try:
                line = await self._reader.readline()
            except OSError:
                return
            if not line.endswith(b"\n"):
                return
            yield json.loads(line)

    def close(self) -> None:
        """Ends the line once everything is sent. Idempotent."""
        self._writer.close()
