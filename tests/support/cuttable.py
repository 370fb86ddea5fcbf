"""A TCP proxy whose connections a test cuts, stalls and restores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_READ = 16 * 1024


class _Pipe:
    """One connection through the proxy: two directions."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self.writers = writers

    def cut(self) -> None:
        """Both ends see a reset, and what was on its way is gone."""
        for writer in self.writers:
            writer.transport.abort()


class CuttableProxy:
    """Passes connections on to `target` until told otherwise."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._pipes: set[_Pipe] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._stalled: list[asyncio.Event] = []
        self._accepting = True
        self._bytes_left: int | None = None
        self.address = ""
        self.connections = 0
        self.refused = 0
        self.swallowed = 0
        """Reads of what came from callers while nothing passed."""

    def cut(self) -> int:
        """Ends every connection at once; returns how many. New ones are passed on."""
        pipes = tuple(self._pipes)
        for pipe in pipes:
            pipe.cut()
        return len(pipes)

    def cut_after(self, size: int) -> None:
        """Cuts every connection once so many more bytes have come from the target, in the midst
        of whatever they are."""
        self._bytes_left = size

    def close(self) -> None:
        """Cuts, and resets new connections too."""
        self._accepting = False
        self.cut()

    def stall(self) -> None:
        """Half-open: the present connections stay, and nothing passes any more."""
        self._flowing.clear()

    def restore(self) -> None:
        """New connections are passed on again; stalled ones flow."""
        self._accepting = True
        self._flowing.set()

    def forget_stalled(self) -> None:
        """The present connections stay stalled for ever; new ones are passed on."""
        self._stalled.append(self._flowing)
        self._flowing = asyncio.Event()
        self._flowing.set()

    def end(self) -> None:
        """Cuts whatever there is, stalled or not."""
        for flowing in (*self._stalled, self._flowing):
            flowing.set()
        self.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        if not self._accepting:
            self.refused += 1
            writer.transport.abort()
            return
        self.connections += 1
        host, _, port = self._target.rpartition(":")
        try:
            there, back = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        pipe = _Pipe(writer, back)
        self._pipes.add(pipe)
        flowing = self._flowing
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(pipe, reader, back, flowing, counted=False))
                tasks.create_task(self._pump(pipe, there, writer, flowing, counted=True))
        finally:
            self._pipes.discard(pipe)
            pipe.cut()

    async def _pump(
        self,
        pipe: _Pipe,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        flowing: asyncio.Event,
        *,
        counted: bool,
    ) -> None:
        try:
            while data := await reader.read(_READ):
                if not flowing.is_set():
                    self.swallowed += not counted
                    await flowing.wait()
                if counted and self._bytes_left is not None:
                    self._bytes_left -= len(data)
                    if self._bytes_left <= 0:
                        writer.write(data[: self._bytes_left or None])
                        self._bytes_left = None
                        self.cut()
                        return
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        pipe.cut()


@asynccontextmanager
async def cuttable(target: str) -> AsyncIterator[CuttableProxy]:
    """A proxy to `target` (host:port) at an address of its own."""
    proxy = CuttableProxy(target)
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await proxy.serve(reader, writer)
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    proxy.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        proxy.end()
        # Not cancelled: asyncio's server reports that as an error of the callback.
        if tasks:
            await asyncio.wait(tuple(tasks))
        await server.wait_closed()
