"""Scripted backends under a policy, for tests of what the policy makes of requests."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import session_pb2
from services.router.core.policy import (
    Budget,
    HedgeRules,
    Objective,
    Policy,
    TenantRules,
)
from tests.support.scripted_backends import scene, text_chunk

STOP = pb.FINISH_REASON_STOP
PLAIN = Policy(objective=Objective(ttft=1.0), slow_start=0.0)
BUSY = session_pb2.LoadReport(running=1, max_running=1, step_time={"nanos": 10_000_000})
FREE = session_pb2.LoadReport(running=0, max_running=1)
# A million tokens for a million micro-USD: a token costs one.
PRICES = pb.TokenPrices(input=1_000_000, cached_input=1_000_000, output=1_000_000)
ONLY_CLOUD = pb.Routing(residency=pb.RESIDENCY_CLOUD_ONLY)
HEDGING = replace(PLAIN, hedge=HedgeRules(enabled=True, share=1.0, after=1.0, soonest=0.01))


@asynccontextmanager
async def pool_of(policy: Policy, **backends):
    """A scene with these backends ready: names to the arguments of `Scene.backend`."""
    async with scene(policy=policy) as s:
        found = {name: await s.backend(name, **how) for name, how in backends.items()}
        s.list(*found.values())
        await s.ready(*found.values())
        yield s, found


CLOUD = {"tier": pb.TIER_CLOUD, "prices": PRICES}


def spending(budget: int) -> Policy:
    """The tenant of a scene may spend so much, in micro-USD."""
    return replace(PLAIN, tenants={"shop": TenantRules(cloud_budget=Budget(budget))})


async def answered(backend, *, cost: int = 0, reason: pb.FinishReason = STOP) -> pb.GenerateRequest:
    """The backend answers its next request with one token."""
    number, request = await backend.next_start()
    receipt = pb.RouteReceipt(cost_microusd=cost) if cost else None
    await backend.send(text_chunk(number, 0, "x", 1, finish_reason=reason, receipt=receipt))
    return request


async def late(s, at):
    """Two backends: the one that was asked first, and the other, who gets a hedge or a repeat."""
    first = next(u.backend.id for u in s.pool.uplinks() if u.backend.in_flight)
    (second,) = at.keys() - {first}
    return at[first], at[second]


async def has_running(s, name: str, count: int = 1) -> bool:
    """Whether a backend has said that it runs so many."""
    return s.pool.uplink(name).backend.tracker.view().load.running == count


async def idle(s) -> bool:
    """Whether the router has nothing anywhere."""
    return not any(uplink.backend.in_flight for uplink in s.pool.uplinks())


async def cancelled(backend, number: int) -> bool:
    """Whether a backend was told to give a request up."""
    return number in backend.cancelled
