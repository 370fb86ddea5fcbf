"""The gRPC servers of one process: for callers, for its sibling workers, and for probes alone.

It makes, binds and stops them, and answers health and reflection on them. What else they serve, and
in which order a process begins and ends, is the host's.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence

from grpc_health.v1 import health_pb2_grpc

from services.chassis.authn import Verifier
from services.chassis.channelz import FULL_NAME as CHANNELZ
from services.chassis.channelz import add_channelz
from services.chassis.common_settings import CommonSettings
from services.chassis.guard import Observer, OnRefusal
from services.chassis.guarded_server import guarded_server
from services.chassis.health import Health, HealthServicer
from services.chassis.http2.server import Server
from services.chassis.ports import bind
from services.chassis.reflection import add_reflection
from services.chassis.tls import Tls
from services.chassis.workers.retirement import REASON
from services.chassis.workers.worker import Worker


class Servers:
    """`callers` is everybody's; `siblings` is there in a worker only. `health_address`: host:port
    of the plaintext port for probes, once bound; empty without one."""

    def __init__(
        self,
        settings: CommonSettings,
        verifier: Verifier,
        *,
        tls: Tls | None,
        worker: Worker | None,
        observer: Observer,
        on_refusal: OnRefusal,
    ) -> None:
        self._settings = settings
        self._tls = tls
        self._worker = worker
        self.callers = guarded_server(
            settings,
            verifier,
            shared=worker is not None,
            observer=observer,
            on_refusal=on_refusal,
        )
        self.siblings = (
            guarded_server(settings, verifier, siblings=True) if worker is not None else None
        )
        self._probes = guarded_server(settings, verifier) if settings.health_listen else None
        self.health_address = ""

    def describe(self, health: Health, services: Sequence[str]) -> None:
        """Answers for the health of these services, full names, and shows what they offer."""
        servicer = HealthServicer(health, services)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self.callers)
        if self._probes is not None:
            health_pb2_grpc.add_HealthServicer_to_server(servicer, self._probes)
        protoset = importlib.resources.files("anabranch.v1").joinpath("anabranch.protoset")
        add_channelz(self.callers, self._named())
        add_reflection(self.callers, protoset.read_bytes(), (*services, CHANNELZ))

    def _named(self) -> dict[str, Server]:
        servers = {"callers": self.callers, "siblings": self.siblings, "probes": self._probes}
        worker = "" if self._worker is None else f" of worker {self._worker.number}"
        return {name + worker: one for name, one in servers.items() if one is not None}

    async def open(self) -> str:
        """Answers on the service's own port, and that for probes; returns the former's address.

        Raises OSError.
        """
        tls = None if self._tls is None else self._tls.server_context
        shared = self._worker is not None
        address = await bind(self.callers, self._settings.listen, reuse_port=shared, tls=tls)
        if self._probes is not None:
            self.health_address = await bind(
                self._probes, self._settings.health_listen, reuse_port=shared
            )
            await self._probes.start()
        await self.callers.start()
        return address

    async def open_for_siblings(self, worker: Worker) -> None:
        """Answers at the worker's private socket."""
        assert self.siblings is not None, "there are no siblings"
        await self.siblings.listen(worker.assignment.grpc_socket)
        await self.siblings.start()

    def leave_probes_to_siblings(self) -> None:
        """They answer at the same port: whoever asks is not to hear that this worker leaves."""
        if self._probes is not None:
            self._probes.close_listeners()
            self._probes.send_away(REASON)

    async def stop(self, grace: float) -> None:
        """Cuts what is left after `grace` seconds; probes are answered until the last."""
        for server in (self.callers, self.siblings, self._probes):
            if server is not None:
                await server.stop(grace)
