"""How many tokens one core issues: to clients that log in again, for the first time, with a key."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import jwt
from argon2 import PasswordHasher
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from anabranch.v1 import auth_pb2 as pb
from bench import cpu
from bench.auth import cores
from bench.auth.caller import Order, Outcome, called, encoded
from bench.auth.failure import LookFailed
from bench.auth.issuer import Issuer
from bench.auth.plan import Plan
from bench.auth.stack import Replicas
from bench.dataplane.meter import percentile

_MEMORY_KIB, _PASSES, _LANES = 19 * 1024, 2, 1
HASH = f"argon2id, m = {_MEMORY_KIB // 1024} MiB, t = {_PASSES}, p = {_LANES}"
"""As services/auth/passwords.py has it."""

REPEATED, FIRST, EXCHANGE = "repeated logins", "first logins", "API keys"
SIGNING, HASHING = "bare Ed25519 signature", "bare argon2id"


class Issuance:
    """The clients of a run; `look` starts the service anew, to which all of them are new."""

    def __init__(self, replicas: Replicas, plan: Plan) -> None:
        self._replicas = replicas
        self._plan = plan

    async def prepare(self) -> None:
        """Makes clients and keys."""
        await self._replicas.start("auth")
        async with self._replicas.administrator("auth") as administrator:
            self._known = await administrator.clients(
                [f"client-{number}" for number in range(self._plan.clients)]
            )
            self._new = await administrator.clients(
                [f"newcomer-{number}" for number in range(self._plan.newcomers)]
            )
            self._keys = await administrator.keys(self._known[0][0], self._plan.clients)

    async def look(self) -> dict[str, Any]:
        """Rates a second, CPU a token and delays, by kind. Raises LookFailed."""
        target = await self._replicas.start("auth")
        cores.pin(self._replicas.pids("auth"), cores.service_core())
        plan = self._plan
        found: dict[str, Any] = {}
        for name, method, requests, each in (
            (FIRST, "IssueToken", _logins(self._new), plan.newcomers),
            (REPEATED, "IssueToken", _logins(self._known), 0),
            (EXCHANGE, "ExchangeApiKey", _exchanges(self._keys), 0),
        ):
            order = Order(
                target=target,
                method=method,
                classes=(requests,),
                in_flight=plan.in_flight,
                each=each,
                seconds=plan.window,
            )
            if not each:
                # The first login of each is a look of its own, and so is the first use of a key.
                await called(replace(order, each=len(requests)), cores.caller_core())
            found[name] = await self._rate(order)
        found[SIGNING] = await asyncio.to_thread(_bare_signatures, plan.bare)
        found[HASHING] = await asyncio.to_thread(_bare_hashes, plan.bare_hashes)
        return found

    async def _rate(self, order: Order) -> dict[str, float]:
        pids = self._replicas.pids("auth")
        before = cpu.seconds(pids)
        outcome = await called(order, cores.caller_core())
        spent = cpu.seconds(pids) - before
        _check(outcome)
        times = sorted(outcome.times[0])
        return {
            "a_second": outcome.answers / outcome.wall,
            "cpu_us": spent / outcome.answers * 1e6,
            "service_cores": spent / outcome.wall,
            "caller_cores": outcome.cpu / outcome.wall,
            "p50_ms": percentile(times, 50) * 1e3,
            "p99_ms": percentile(times, 99) * 1e3,
        }


def _check(outcome: Outcome) -> None:
    if set(outcome.statuses) != {"OK"}:
        raise LookFailed(f"not every login succeeded: {outcome.statuses}")


def _logins(clients: list[tuple[str, str]]) -> tuple[str, ...]:
    return encoded([pb.IssueTokenRequest(client_id=c, client_secret=s) for c, s in clients])


def _exchanges(keys: list[str]) -> tuple[str, ...]:
    return encoded([pb.ExchangeApiKeyRequest(api_key=key) for key in keys])


def _bare_signatures(count: int) -> dict[str, float]:
    """A JWT of the same claims signed by PyJWT, and nothing else."""
    issuer = Issuer()
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    key = Ed25519PrivateKey.generate()
    began = time.thread_time()
    for _ in range(count):
        jwt.encode(claims, key, algorithm="EdDSA", headers={"typ": "at+jwt", "kid": "bench"})
    spent = time.thread_time() - began
    return {"a_second": count / spent, "cpu_us": spent / count * 1e6}


def _bare_hashes(count: int) -> dict[str, float]:
    """The hash of a secret with the service's parameters, verified once and again."""
    hasher = PasswordHasher(memory_cost=_MEMORY_KIB, time_cost=_PASSES, parallelism=_LANES)
    known = hasher.hash("abs_secret")
    began = time.thread_time()
    for _ in range(count):
        hasher.verify(known, "abs_secret")
    spent = time.thread_time() - began
    return {"a_second": count / spent, "cpu_us": spent / count * 1e6}
