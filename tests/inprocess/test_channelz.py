"""Channelz over our own servers, asked by a stock gRPC client as an operator's tools ask."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2 as pb
from grpc_channelz.v1 import channelz_pb2_grpc

from anabranch.v1 import model_pb2, model_pb2_grpc
from tests.support.auth import bearer
from tests.support.inprocess import Cluster, cluster
from tests.support.waiting import BOUND_S, until


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path) as running:
        yield running


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


async def test_an_operator_sees_servers_their_calls_and_who_is_connected(running: Cluster):
    assert running.router is not None
    admin = bearer(await running.token())
    address = running.router.address
    async with (
        grpc.aio.insecure_channel(address) as channel,
        grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as other,
    ):
        models = model_pb2_grpc.ModelServiceStub(other)
        await models.ListModels(model_pb2.ListModelsRequest(), metadata=admin)
        with pytest.raises(grpc.aio.AioRpcError):
            await models.ListModels(model_pb2.ListModelsRequest())  # nobody's
        stub = channelz_pb2_grpc.ChannelzStub(channel)
        servers = await stub.GetServers(pb.GetServersRequest(), metadata=admin)
        assert servers.end
        callers = next(one for one in servers.server if one.ref.name == "callers")
        assert callers.data.calls_failed == 1
        assert callers.data.calls_started > callers.data.calls_succeeded > 0  # this very one runs
        assert callers.data.last_call_started_timestamp.seconds > 0
        one = pb.GetServerRequest(server_id=callers.ref.server_id)
        again = await stub.GetServer(one, metadata=admin)
        assert again.server.data.calls_started > callers.data.calls_started

        asked = pb.GetServerSocketsRequest(server_id=callers.ref.server_id)
        sockets = await stub.GetServerSockets(asked, metadata=admin)
        assert sockets.end
        assert len(sockets.socket_ref) >= 2
        asked.max_results = 1
        first = await stub.GetServerSockets(asked, metadata=admin)
        assert (len(first.socket_ref), first.end) == (1, False)
        seen = []
        for ref in sockets.socket_ref:
            found = await stub.GetSocket(
                pb.GetSocketRequest(socket_id=ref.socket_id), metadata=admin
            )
            seen.append(found.socket)
            assert found.socket.local.tcpip_address.port == _port(address)
            assert f":{found.socket.remote.tcpip_address.port}" in ref.name
            assert found.socket.data.local_flow_control_window.value > 0
        # One connection has the two calls of ListModels: both ended with a status.
        both = [socket.data for socket in seen if socket.data.streams_started == 2]
        assert [(data.streams_succeeded, data.streams_failed) for data in both] == [(2, 0)]


async def test_a_stream_that_its_caller_left_counts_as_failed(running: Cluster):
    assert running.router is not None
    admin = bearer(await running.token())
    async with (
        grpc.aio.insecure_channel(running.router.address) as channel,
        grpc.aio.insecure_channel(
            running.router.address, [("grpc.use_local_subchannel_pool", 1)]
        ) as leaving,
    ):
        session = model_pb2_grpc.ModelServiceStub(leaving).Session(metadata=admin)
        await session.read()
        stub = channelz_pb2_grpc.ChannelzStub(channel)

        async def failed() -> int:
            servers = await stub.GetServers(pb.GetServersRequest(), metadata=admin)
            return sum(one.data.calls_failed for one in servers.server)

        before = await failed()
        session.cancel()

        async def counted() -> bool:
            return await failed() == before + 1

        await until(counted)


async def test_only_administrators_see_it_and_channels_are_not_made_up(running: Cluster):
    assert running.router is not None
    secret = await running.new_client("viewer", "observe", tenant="operators")
    viewer = bearer(await running.token("viewer", secret))
    admin = bearer(await running.token())
    async with grpc.aio.insecure_channel(running.router.address) as channel:
        stub = channelz_pb2_grpc.ChannelzStub(channel)

        async def status(method: str, request: object, metadata: object) -> str:
            call = getattr(stub, method)(request, metadata=metadata, timeout=BOUND_S)
            return str((await call.code()).name)

        assert await status("GetServers", pb.GetServersRequest(), None) == "UNAUTHENTICATED"
        assert await status("GetServers", pb.GetServersRequest(), viewer) == "PERMISSION_DENIED"
        assert await status("GetTopChannels", pb.GetTopChannelsRequest(), admin) == "UNIMPLEMENTED"
        gone = pb.GetSocketRequest(socket_id=10**9)
        assert await status("GetSocket", gone, admin) == "NOT_FOUND"
        assert await status("GetServer", pb.GetServerRequest(server_id=9), admin) == "NOT_FOUND"
        asked = pb.GetServerSocketsRequest(server_id=9)
        assert await status("GetServerSockets", asked, admin) == "NOT_FOUND"
