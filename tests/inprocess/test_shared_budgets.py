"""Routers that share a Redis share their tenants' cloud budgets: all real services, one process."""

from contextlib import AsyncExitStack

import grpc
import pytest

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import fault_from_rpc_error
from tests.support.auth import bearer
from tests.support.inprocess import MODEL, cluster, model_stub
from tests.support.redis import RedisServer, binary, redis_server
from tests.support.waiting import until

MICROUSD = 1_000_000
POLICY = """
version: 1
tenants: {shop: {cloud_budget: {usd: "1.00", period: 30d}}}
"""
IN_CLOUD = pb.GenerateRequest(
    model=MODEL, prompt="p", routing=pb.Routing(residency=pb.RESIDENCY_CLOUD_ONLY)
)


def held(redis: RedisServer) -> list[int]:
    """What each router holds of the tenant's budget."""
    with redis.client() as own:
        names = own.keys("anabranch:budget:*tenant:shop")
        entries = own.hgetall(names[0]) if names else {}
    return [int(value) for name, value in entries.items() if name.startswith(b"held:")]


@pytest.mark.cluster
@pytest.mark.skipif(binary() is None, reason="no Redis server installed")
async def test_each_router_leases_a_part_and_gives_it_back_when_it_stops(tmp_path):
    with redis_server() as redis:
        path = tmp_path / "policy.yaml"
        path.write_text(POLICY)
        settings = {"policy": f"file:{path}", "redis_url": redis.url}
        async with cluster(tmp_path) as running:
            secret = await running.new_client("shop", "generate", tenant="shop")
            token = await running.token("shop", secret)
            async with AsyncExitStack() as routers:
                for count in (1, 2):
                    router = await routers.enter_async_context(running.one_more_router(**settings))
                    async with running.channel(router) as channel:
                        # There is no cloud here; that it was asked for is enough.
                        with pytest.raises(grpc.aio.AioRpcError) as refused:
                            await model_stub(channel).Generate(
                                IN_CLOUD, metadata=bearer(token), timeout=60
                            )
                        assert fault_from_rpc_error(refused.value).reason

                        async def leased(count: int = count) -> bool:
                            return len(held(redis)) == count and all(held(redis))

                        await until(leased)
                assert sum(held(redis)) <= MICROUSD // 10
            assert held(redis) == [0, 0]
