"""ModelService at its edges, before a scripted handler: callers that leave, stall or repeat."""

import asyncio
import gc
from collections.abc import Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from anabranch.v1 import errors_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.common_settings import CommonSettings
from services.chassis.errors import fault_from_rpc_error
from services.chassis.host import Host
from services.chassis.model_handler import Outlet
from services.chassis.model_streams import StreamLimits
from tests.support.auth import bearer, until
from tests.support.inprocess import model_stub
from tests.support.local_keys import LocalKeys
from tests.support.waiting import BOUND_S


class Handler:
    """Keeps the outlets of requests and which of them were cancelled."""

    def __init__(self) -> None:
        self.outlets: list[Outlet] = []
        self.cancelled: list[Outlet] = []

    def open(self, request, context, outlet) -> Callable[[], None]:
        self.outlets.append(outlet)
        return lambda: self.cancelled.append(outlet)

    def ready(self) -> session_pb2.SessionReady:
        return session_pb2.SessionReady(backend_id="scripted")

    def load(self) -> session_pb2.LoadReport:
        return session_pb2.LoadReport(running=7)

    async def next(self) -> Outlet:
        async def there() -> bool:
            return bool(self.outlets)

        await until(there)
        return self.outlets.pop(0)


class Scene:
    def __init__(self, handler, host, channel, auth) -> None:
        self.handler = handler
        self.host = host
        self.channel = channel
        self.stub = model_stub(channel)
        self.auth = auth


@asynccontextmanager
async def scene(**limits):
    keys = LocalKeys()
    handler = Handler()
    settings = CommonSettings(
        listen="127.0.0.1:0", http_listen="127.0.0.1:0", registry="none", drain_timeout=0.1
    )
    async with Host.open("anabranch-engine", settings, key_source=keys) as host:
        host.add_model_service(handler, limits=StreamLimits(**limits), remember_ids=10)
        await host.start()
        await host.serve()
        async with grpc.aio.insecure_channel(
            host.address, options=[("grpc.http2.bdp_probe", 0)]
        ) as channel:
            yield Scene(handler, host, channel, bearer(keys.token("generate")))


def ask(**fields) -> pb.GenerateRequest:
    return pb.GenerateRequest(**{"model": "m", "prompt": "p", **fields})


BIG = pb.GenerateChunk(text="x" * 64_000).SerializeToString()


async def test_a_plain_stream_that_nobody_reads_is_cut_and_its_work_stopped():
    async with scene(write_stall=0.5) as s:
        call = s.stub.StreamGenerate(ask(), metadata=s.auth)
        outlet = await s.handler.next()
        for _ in range(200):
            outlet.chunk(BIG, last=False, tokens=1)

        async def stopped() -> bool:
            return s.handler.cancelled == [outlet]

        await until(stopped)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while await call.read() is not grpc.aio.EOF:
                pass
        fault = fault_from_rpc_error(caught.value)
        assert fault.reason == errors_pb2.ERROR_REASON_SLOW_READER
        assert fault.work == "output_seen"


async def test_what_waits_for_a_slow_reader_of_a_plain_stream_is_bounded():
    async with scene(write_stall=300.0, stream_buffer_bytes=1_000_000) as s:
        call = s.stub.StreamGenerate(ask(), metadata=s.auth)
        outlet = await s.handler.next()
        for _ in range(40):
            outlet.chunk(BIG, last=False, tokens=1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while await call.read() is not grpc.aio.EOF:
                pass
        assert fault_from_rpc_error(caught.value).reason == errors_pb2.ERROR_REASON_SLOW_READER

        async def stopped() -> bool:
            return s.handler.cancelled == [outlet]

        await until(stopped)


async def test_a_caller_that_leaves_while_its_chunk_is_written_frees_the_request_at_once(caplog):
    async with scene(write_stall=300.0, stream_buffer_bytes=100_000_000) as s:
        call = s.stub.StreamGenerate(ask(), metadata=s.auth)
        outlet = await s.handler.next()
        for _ in range(200):
            outlet.chunk(BIG, last=False, tokens=1)
        await call.read()
        gc.disable()
        try:
            call.cancel()

            async def stopped() -> bool:
                return s.handler.cancelled == [outlet]

            await until(stopped)
        finally:
            gc.enable()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_session_tells_its_load_at_once():
    async with scene(load_idle_interval=600.0) as s:
        call = s.stub.Session(metadata=s.auth)
        assert (await call.read()).HasField("ready")
        async with asyncio.timeout(BOUND_S):
            assert (await call.read()).load.running == 7
        await call.done_writing()


async def test_the_time_that_is_left_is_no_part_of_what_a_request_id_stands_for():
    async with scene() as s:
        calls = []
        for seconds in (10, 5):
            request = ask(request_id="one")
            request.timeout.FromSeconds(seconds)
            calls.append(s.stub.Generate(request, metadata=s.auth))
            outlet = await s.handler.next()
            last = pb.GenerateChunk(finish_reason=pb.FINISH_REASON_STOP)
            outlet.chunk(last.SerializeToString(), last=True, tokens=0)
            await calls[-1]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await s.stub.Generate(ask(request_id="one", prompt="other"), metadata=s.auth)
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
