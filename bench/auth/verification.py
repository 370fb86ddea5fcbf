"""What it costs a service to verify a credential by itself, beside PyJWT alone; and a whole RPC.

Everything runs in this process and on this thread; nothing is sent but in the RPCs.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import jwt

from anabranch.api_keys import BASE62, PUBLIC_ID_LENGTH, SECRET_LENGTH, compose
from bench.auth.guarded import guarded_rpcs
from bench.auth.issuer import ALGORITHMS, AUDIENCE, ISSUER, Issuer
from bench.auth.plan import Plan
from services.chassis import authn
from services.chassis.token_claims import LEEWAY_S

_POPULATION = 200
"""Cached credentials that are asked for in turn."""

_REQUIRED = ["exp", "iat", "sub", "client_id", "jti", "iss", "aud"]

Cost = dict[str, float]


async def look(plan: Plan) -> dict[str, Cost]:
    """What each way costs, by name, in microseconds of CPU and of wall time a call."""
    issuer = Issuer()
    found: dict[str, Cost] = {}
    for algorithm in ALGORITHMS:
        tokens = [issuer.token(algorithm) for _ in range(plan.new)]
        found[f"bare {algorithm}"] = _bare(issuer, algorithm, tokens)
        verifier = _verifier(issuer)
        await verifier.verify(issuer.token(algorithm))
        found[f"new {algorithm}"] = await _calls(verifier.verify, tokens)
    known = [issuer.token() for _ in range(_POPULATION)]
    found["cached token"] = await _cached(issuer, known, plan.cached)
    api_keys = [_api_key(number) for number in range(_POPULATION)]
    found["cached API key"] = await _cached(issuer, api_keys, plan.cached)
    found.update(await guarded_rpcs(issuer, _verifier(issuer), plan.guarded))
    return found


def _verifier(issuer: Issuer) -> authn.Verifier:
    return authn.Verifier(issuer, issuer=ISSUER, audience=AUDIENCE, exchange=issuer)


def _api_key(number: int) -> str:
    return compose(f"{number:0{PUBLIC_ID_LENGTH}d}", BASE62[1] * SECRET_LENGTH)


async def _cached(issuer: Issuer, credentials: Sequence[str], calls: int) -> Cost:
    verifier = _verifier(issuer)
    for credential in credentials:
        await verifier.verify(credential)
    turns = -(-calls // len(credentials))
    return await _calls(verifier.verify, [*credentials] * turns)


async def _calls(call: Callable[[str], Awaitable[Any]], credentials: Sequence[str]) -> Cost:
    meter = Meter()
    for credential in credentials:
        await call(credential)
    return meter.cost(len(credentials))


def _bare(issuer: Issuer, algorithm: str, tokens: Sequence[str]) -> Cost:
    """PyJWT with the options that the verifier gives it, and nothing around it."""
    key = issuer.public(algorithm)
    meter = Meter()
    for token in tokens:
        jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            issuer=ISSUER,
            audience=AUDIENCE,
            leeway=LEEWAY_S,
            options={"require": list(_REQUIRED)},
        )
    return meter.cost(len(tokens))


class Meter:
    """CPU of this thread and wall time since it was made."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.thread_time(), time.perf_counter()

    def cost(self, calls: int) -> Cost:
        """Microseconds a call."""
        cpu, wall = time.thread_time() - self._cpu, time.perf_counter() - self._wall
        return {"cpu_us": cpu / calls * 1e6, "wall_us": wall / calls * 1e6}
