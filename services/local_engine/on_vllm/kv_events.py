"""vLLM's events of its KV cache, told to `PrefixNames`. Does not import vLLM: they are duck-typed.

vLLM publishes them over ZeroMQ from its engine core's process: which blocks of tokens it has
stored and removed, by hashes of its own. Two requests that compute the same block at once each
store one, so blocks are counted. Socket and message format come with vLLM's own requirements.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.local_engine.prefix_events import ROOT, PrefixNames, next_key

_log = logging.getLogger(__name__)

_PAUSE_S = 0.1
"""Between looks at what has come. A burst of prompts stores blocks just when its first tokens are
to be handed on, and routers do not need to hear of them sooner."""

_LONGEST_PATH = 100  # bytes, with some room: systems allow 103 to 107
# Events were arrays of these before they became maps; what follows in them is of no use here.
_FIELDS: Mapping[str, Sequence[str]] = {
    "BlockStored": (
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "medium",
        "lora_name",
        "extra_keys",
        "group_idx",
    ),
    "BlockRemoved": ("block_hashes", "medium", "group_idx"),
    "AllBlocksCleared": (),
}


class BlockEvents:
    """Takes batches of events in their order; a gap between them voids what was known."""

    def __init__(self, prefixes: PrefixNames) -> None:
        self._prefixes = prefixes
        self._next: int | None = None
        # Of each of vLLM's hashes our own key, and how many blocks have it.
        self._blocks: dict[Any, tuple[int, int]] = {}

    def take(self, number: int, events: Sequence[Any]) -> None:
        """Takes the batch of that number. Raises LookupError, TypeError or ValueError."""
        if self._next is not None and number != self._next:
            lost = number - self._next
            _log.warning("events of the KV cache were lost", extra={"batches": lost})
            self._clear()
        self._next = number + 1
        for event in events:
            self._take(*_read(event))

    def give_up(self) -> None:
        """Nothing more will come: what was known is void."""
        self._clear()

    def _take(self, kind: str, fields: Mapping[str, Any]) -> None:
        if kind == "AllBlocksCleared":
            self._clear()
        elif not _is_of_interest(fields):
            return
        elif kind == "BlockStored":
            self._store(fields)
        elif kind == "BlockRemoved":
            for digest in fields["block_hashes"]:
                self._remove(digest)

    def _store(self, fields: Mapping[str, Any]) -> None:
        digests, tokens, size = fields["block_hashes"], fields["token_ids"], fields["block_size"]
        if size != self._prefixes.block or len(tokens) != size * len(digests):
            return  # parts of blocks, or blocks left out: no prompt is found by these
        before = fields["parent_block_hash"]
        if before is None:
            parent = ROOT
        elif before in self._blocks:
            parent, _ = self._blocks[before]
        else:
            return  # its beginning was never heard of, or is gone
        for place, digest in enumerate(digests):
            key, count = self._blocks.get(digest, (0, 0))
            if not count:
                key = next_key(parent, tokens[place * size : (place + 1) * size])
                self._prefixes.store(key, parent)
            self._blocks[digest] = (key, count + 1)
            parent = key

    def _remove(self, digest: Any) -> None:
        key, count = self._blocks.get(digest, (0, 0))
        if count > 1:
            self._blocks[digest] = (key, count - 1)
        elif count:
            del self._blocks[digest]
            self._prefixes.remove(key)

    def _clear(self) -> None:
        self._blocks.clear()
        self._prefixes.clear()


class KvEventSocket:
    """Where vLLM publishes its events: a socket in a directory that only this user can enter.

    Raises OSError where there is no place for one.
    """

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="anabranch-kv-"))
        path = f"{self._directory}/events"
        if len(path.encode()) > _LONGEST_PATH:
            self.close()
            raise OSError(errno.ENAMETOOLONG, "the temporary directory's name is too long", path)
        self.endpoint = f"ipc://{path}"

    async def listen(self, events: BlockEvents) -> None:
        """Passes events on until cancelled, or until one cannot be understood, which is logged."""
        from zmq.asyncio import Context
        from zmq.constants import SocketOption, SocketType

        context = Context()
        try:
            with context.socket(SocketType.SUB) as socket:
                socket.setsockopt(SocketOption.LINGER, 0)
                socket.subscribe(b"")
                socket.connect(self.endpoint)
                await _pass_on(socket, events)
        finally:
            context.destroy(linger=0)

    def close(self) -> None:
        """Removes the directory. Idempotent."""
        shutil.rmtree(self._directory, ignore_errors=True)


async def _pass_on(socket: Any, events: BlockEvents) -> None:
    from msgspec import MsgspecError, msgpack

    while True:
        parts = await socket.recv_multipart()
        await asyncio.sleep(_PAUSE_S)
        try:
            while parts:
                _, number, payload = parts
                _, batch, *_ = msgpack.decode(payload)
                events.take(int.from_bytes(number, "big"), batch)
                await asyncio.sleep(0)  # tokens go first
                parts = await _waiting(socket)
        except (MsgspecError, LookupError, TypeError, ValueError) as error:
            _log.warning(
                "this vLLM's events of its KV cache cannot be read: routers are told no more of it",
                extra={"cause": f"{type(error).__name__}: {error}"},
            )
            events.give_up()
            return


async def _waiting(socket: Any) -> list[bytes]:
    """The next message, if it has come already; nothing otherwise."""
    from zmq.constants import Flag
    from zmq.error import Again

    try:
        found: list[bytes] = await socket.recv_multipart(flags=Flag.NOBLOCK)
    except Again:
        return []
    return found


def _read(event: Any) -> tuple[str, Mapping[str, Any]]:
    """The kind of an event, and its fields by name."""
    if isinstance(event, Mapping):
        return event["type"], event
    kind, *values = event
    return kind, dict(zip(_FIELDS.get(kind, ()), values, strict=False))


def _is_of_interest(fields: Mapping[str, Any]) -> bool:
    """Whether it is about the device's own cache, its first group, and the plain model."""
    if fields.get("medium") not in (None, "GPU") or fields.get("group_idx") not in (None, 0):
        return False
    return fields.get("lora_id") is None and not any(fields.get("extra_keys") or ())
