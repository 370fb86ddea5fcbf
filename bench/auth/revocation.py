"""How long a revoked credential is still accepted: where it was revoked, and at another replica.

The time runs from before the revocation is asked for until a verifier in another process refuses
the credential. Revocations come at random moments, so that no schedule is in step with them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anabranch.v1 import auth_pb2 as pb
from bench.auth.failure import LookFailed
from bench.auth.follower import Follower, follower
from bench.auth.plan import Plan
from bench.auth.stack import Administrator, replicas

KINDS = ("token", "API key", "client")
FOLLOWED = ("the same replica", "another replica")
_LONGEST_S = 30.0


@dataclass(frozen=True, slots=True)
class _Victim:
    """A credential, and what ends it."""

    kind: str
    credential: str
    end: Callable[[], Awaitable[Any]]


async def look(
    folder: Path, plan: Plan, database_url: str = ""
) -> dict[str, dict[str, list[float]]]:
    """Seconds by what was revoked and which replica the verifier follows. Raises LookFailed."""
    async with AsyncExitStack() as stack:
        both = await stack.enter_async_context(replicas(folder, database_url))
        targets = [await both.start("auth-a"), await both.start("auth-b")]
        administrator = await stack.enter_async_context(both.administrator("auth-a"))
        followers = [await stack.enter_async_context(follower(target)) for target in targets]
        chance = random.Random(1)  # noqa: S311 - moments, no secrets
        victims = await _victims(administrator, plan.revocations)
        chance.shuffle(victims)
        found: dict[str, dict[str, list[float]]] = {k: {f: [] for f in FOLLOWED} for k in KINDS}
        async with asyncio.TaskGroup() as group:
            for victim in victims:
                group.create_task(_one(victim, followers, found[victim.kind]))
                await asyncio.sleep(chance.expovariate(plan.revocations_a_second))
    return found


async def _one(victim: _Victim, followers: list[Follower], found: dict[str, list[float]]) -> None:
    refused = [await one.watch(victim.credential) for one in followers]
    began = time.monotonic()
    await victim.end()
    try:
        async with asyncio.timeout(_LONGEST_S):
            moments = await asyncio.gather(*refused)
    except TimeoutError:
        raise LookFailed(
            f"a revoked {victim.kind} was accepted for {_LONGEST_S:g} s and longer"
        ) from None
    for name, moment in zip(FOLLOWED, moments, strict=True):
        found[name].append(round(moment - began, 4))


async def _victims(administrator: Administrator, count: int) -> list[_Victim]:
    """So many of each kind; the tokens and keys are of one client, which stays."""
    stub, asks = administrator.stub, administrator.asks
    (staying,) = await administrator.clients(["staying"])
    tokens = await administrator.tokens([staying] * count)
    keys = await administrator.keys(staying[0], count)
    leaving = await administrator.clients([f"leaving-{number}" for number in range(count)])
    theirs = await administrator.tokens(leaving)

    def ends_token(token: str) -> Callable[[], Awaitable[Any]]:
        return lambda: asks(stub.RevokeToken, pb.RevokeTokenRequest(token=token))

    def ends_key(key: str) -> Callable[[], Awaitable[Any]]:
        request = pb.RevokeApiKeyRequest(key_id=key.split("_")[1])
        return lambda: asks(stub.RevokeApiKey, request)

    def ends_client(name: str) -> Callable[[], Awaitable[Any]]:
        return lambda: asks(stub.DisableClient, pb.DisableClientRequest(client_id=name))

    return [
        *(_Victim("token", token, ends_token(token)) for token in tokens),
        *(_Victim("API key", key, ends_key(key)) for key in keys),
        *(
            _Victim("client", token, ends_client(name))
            for (name, _), token in zip(leaving, theirs, strict=True)
        ),
    ]
