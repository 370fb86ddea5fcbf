"""Callers with quotas, of an engine or of a cluster, for tests of what they may do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from anabranch.v1 import errors_pb2, model_pb2_grpc
from anabranch.v1 import generation_pb2 as pb
from services.chassis.channels import open_channel
from services.chassis.errors import Fault, fault_from_rpc_error
from services.chassis.host import Host
from services.chassis.quotas.gate import QuotaGate
from services.chassis.quotas.rules import QuotaRule, Subject, Unit
from services.local_engine.app import running
from services.local_engine.settings import Settings
from services.local_engine.simulation.engine import SimEngine
from tests.support.auth import bearer
from tests.support.local_keys import LocalKeys
from tests.support.waiting import BOUND_S, until

DAY = 86_400


def rule(
    unit: Unit, limit: int, *, model: str = "", subject: Subject = Subject.TENANT, period: int = DAY
) -> QuotaRule:
    """So much at once, and then as good as nothing while a test runs."""
    return QuotaRule(subject, unit, limit, period, limit, model)


def ask(**fields: Any) -> pb.GenerateRequest:
    sampling = {"max_tokens": 8, "ignore_eos": True} | fields.pop("sampling", {})
    return pb.GenerateRequest(
        **{"model": "river", "prompt": "p" * 40, "sampling": pb.Sampling(**sampling)} | fields
    )


class Caller:
    """Of one engine, with quotas in its token."""

    def __init__(self, host: Host, channel: grpc.aio.Channel, keys: LocalKeys) -> None:
        self.host = host
        self.stub: Any = model_pb2_grpc.ModelServiceStub(channel)
        self._keys = keys

    def auth(self, *rules: QuotaRule, client: str = "web", tenant: str = "shop") -> Any:
        token = self._keys.token("generate", client_id=client, tenant=tenant, quotas=rules)
        return bearer(token)

    async def generate(self, auth: Any, **fields: Any) -> pb.GenerateResponse:
        answer: pb.GenerateResponse = await self.stub.Generate(
            ask(**fields), metadata=auth, timeout=BOUND_S
        )
        return answer

    async def refusal(self, auth: Any, **fields: Any) -> Fault:
        return await refused(self.stub.Generate(ask(**fields), metadata=auth, timeout=BOUND_S))

    async def admitted(self, auth: Any, most: int = 100, **fields: Any) -> int:
        """How many of so many requests, one after another, are let through."""
        return await let_through(self.stub, auth, most, **fields)


async def refused(call: Any) -> Fault:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return fault_from_rpc_error(failed.value)


async def let_through(stub: Any, auth: Any, most: int, **fields: Any) -> int:
    count = 0
    for _ in range(most):
        try:
            await stub.Generate(ask(**fields), metadata=auth, timeout=BOUND_S)
        except grpc.aio.AioRpcError as error:
            fault = fault_from_rpc_error(error)
            assert fault.reason == errors_pb2.ERROR_REASON_QUOTA_EXCEEDED, fault
        else:
            count += 1
    return count


@asynccontextmanager
async def engine(
    simulation: SimEngine | None = None, keys: LocalKeys | None = None, **changes: Any
) -> AsyncIterator[Caller]:
    keys = keys or LocalKeys()
    fields: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "http_listen": "127.0.0.1:0",
        "engine": "sim",
        "served_model_name": "river",
        "model_aliases": ("lake",),
        "sim_speed": 0.0,
        "drain_timeout": 0.1,
    }
    settings = Settings(**fields | changes)
    async with (
        running(settings, key_source=keys, engine=simulation) as host,
        open_channel(host.address) as channel,
    ):
        yield Caller(host, channel, keys)


def gate_of(host: Host) -> QuotaGate:
    assert host.model_service is not None
    gate = host.model_service._quotas
    assert gate is not None
    return gate


async def asks_redis(host: Host) -> None:
    """Waits until a process counts together with others."""

    async def there() -> bool:
        shared = gate_of(host)._redis
        return shared is not None and shared.answers

    await until(there)


async def ready(caller: Caller, settings: dict[str, Any]) -> None:
    if settings:
        await asks_redis(caller.host)
