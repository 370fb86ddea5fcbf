"""The channel to one backend for single calls, opened anew when the certificates change.

A channel of grpc.aio keeps the credentials that it was opened with, also for connections that it
makes much later. Sessions are the uplink's.
"""

from __future__ import annotations

import asyncio

import grpc

from services.chassis.channels import open_channel
from services.chassis.registry import Instance
from services.chassis.tls import Tls


class BackendChannel:
    """Makes and keeps the channel. Within the event loop; `close` must be awaited."""

    def __init__(self, instance: Instance, tls: Tls | None, grace: float) -> None:
        """`grace`: seconds that calls on a channel which is given up may take to end."""
        self._instance = instance
        self._tls = tls
        self._grace = grace
        self._credentials = None if tls is None else tls.channel_credentials()
        self._channel = self._open()
        self._closing: set[asyncio.Task[None]] = set()

    def current(self) -> grpc.aio.Channel:
        """For a call that begins now."""
        newest = None if self._tls is None else self._tls.channel_credentials()
        if newest is not self._credentials:
            previous, self._credentials = self._channel, newest
            self._channel = self._open()
            closing = asyncio.get_running_loop().create_task(previous.close(self._grace))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        return self._channel

    async def close(self) -> None:
        """Closes it, and waits for those that were given up."""
        await asyncio.gather(self._channel.close(self._grace), *self._closing)

    def _open(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return open_channel(self._instance.address)
        return open_channel(
            self._instance.address,
            credentials=self._credentials,
            # Whoever is at that address must prove to be the service that the registry calls it.
            options=(("grpc.ssl_target_name_override", self._instance.service),),
        )
