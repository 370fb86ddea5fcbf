"""grpc.channelz.v1 over our own servers: who is connected, and what became of their calls.

The ready-made service reads gRPC's core, which knows nothing of a server of our own. Only the
servers' half is answered: sessions to backends are RouterAdminService's. Messages are not counted,
since each would pay for it. It decides nothing about who may ask.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias

import grpc
from grpc_channelz.v1 import channelz_pb2 as pb
from grpc_channelz.v1 import channelz_pb2_grpc

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from services.chassis.http2.server import Server
from services.chassis.http2.server_connection import ServerConnection

FULL_NAME = "grpc.channelz.v1.Channelz"
_MOST = 100  # of what a page holds, as gRPC's own service has it

Context: TypeAlias = grpc.aio.ServicerContext


class Channelz(channelz_pb2_grpc.ChannelzServicer):  # type: ignore[misc]
    """Servers by their names. Their ids are theirs in this process; so are those of sockets."""

    def __init__(self, servers: Mapping[str, Server]) -> None:
        self._servers = dict(enumerate(servers.items(), 1))

    async def GetServers(self, request: Any, _: Context) -> Any:
        """The servers of this process, by id."""
        ids = [id for id in self._servers if id >= request.start_server_id]
        shown = ids[: _page(request.max_results)]
        return pb.GetServersResponse(
            server=[self._server(id) for id in shown], end=len(shown) == len(ids)
        )

    async def GetServer(self, request: Any, _: Context) -> Any:
        """One of them. Raises Fault."""
        return pb.GetServerResponse(server=self._server(request.server_id))

    async def GetServerSockets(self, request: Any, _: Context) -> Any:
        """The connections of one, by id. Raises Fault."""
        _, server = self._known(request.server_id)
        found = sorted(
            (one for one in server.open_connections if one.id >= request.start_socket_id),
            key=lambda one: one.id,
        )
        shown = found[: _page(request.max_results)]
        refs = [pb.SocketRef(socket_id=one.id, name=one.peer) for one in shown]
        return pb.GetServerSocketsResponse(socket_ref=refs, end=len(shown) == len(found))

    async def GetSocket(self, request: Any, _: Context) -> Any:
        """One connection. Raises Fault."""
        for _name, server in self._servers.values():
            for connection in server.open_connections:
                if connection.id == request.socket_id:
                    return pb.GetSocketResponse(socket=_socket(connection))
        raise _unknown("socket", request.socket_id)

    async def GetTopChannels(self, _request: Any, _: Context) -> Any:
        """Not answered: an empty list would say that there are none."""
        _no_channels()

    async def GetChannel(self, _request: Any, _: Context) -> Any:
        """Not answered."""
        _no_channels()

    async def GetSubchannel(self, _request: Any, _: Context) -> Any:
        """Not answered."""
        _no_channels()

    def _known(self, id: int) -> tuple[str, Server]:
        if id not in self._servers:
            raise _unknown("server", id)
        return self._servers[id]

    def _server(self, id: int) -> Any:
        name, server = self._known(id)
        calls = server.counts
        data = pb.ServerData(
            calls_started=calls.started,
            calls_succeeded=calls.succeeded,
            calls_failed=calls.failed,
        )
        _set_time(data.last_call_started_timestamp, calls.last_started)
        return pb.Server(ref=pb.ServerRef(server_id=id, name=name), data=data)


def add_channelz(server: Server, servers: Mapping[str, Server]) -> None:
    """Serves it on `server`, about `servers`. Before `start`."""
    channelz_pb2_grpc.add_ChannelzServicer_to_server(Channelz(servers), server)


def _socket(connection: ServerConnection) -> Any:
    counts, (to_us, to_peer) = connection.counts, connection.windows
    data = pb.SocketData(
        streams_started=counts.started,
        streams_succeeded=counts.succeeded,
        streams_failed=counts.failed,
        keep_alives_sent=connection.pings_sent,
    )
    _set_time(data.last_remote_stream_created_timestamp, counts.last_started)
    data.local_flow_control_window.value = to_us
    data.remote_flow_control_window.value = to_peer
    socket = pb.Socket(ref=pb.SocketRef(socket_id=connection.id, name=connection.peer), data=data)
    _set_address(socket.local, connection.about("sockname"))
    _set_address(socket.remote, connection.about("peername"))
    if cipher := connection.about("cipher"):
        socket.security.tls.standard_name = cipher[0]
    return socket


def _set_address(address: Any, name: Any) -> None:
    if isinstance(name, tuple):
        address.tcpip_address.ip_address = ipaddress.ip_address(name[0].partition("%")[0]).packed
        address.tcpip_address.port = name[1]
    elif name:
        address.uds_address.filename = name


def _set_time(stamp: Any, at: float | None) -> None:
    """`at` is on the loop's clock."""
    if at is not None:
        ago = asyncio.get_running_loop().time() - at
        stamp.FromMilliseconds(int((time.time() - ago) * 1000))


def _page(most: int) -> int:
    return most if 0 < most < _MOST else _MOST


def _unknown(kind: str, id: int) -> Fault:
    return Fault(errors_pb2.ERROR_REASON_NOT_FOUND, f"there is no {kind} {id} in this process")


def _no_channels() -> NoReturn:
    raise Fault(
        errors_pb2.ERROR_REASON_UNSUPPORTED,
        "channels are not shown, only servers and their sockets; "
        "RouterAdminService.ListBackends has a router's backends",
    )
