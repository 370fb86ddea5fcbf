"""Whether the time of a refusal tells what exists: keys and clients, by response times.

Two kinds of wrong requests, in random order, from another process: of what exists and of what does
not, equally many and equally long. Whoever is refused has a wrong secret in both.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anabranch.api_keys import (
    BASE62,
    PUBLIC_ID_ALPHABET,
    PUBLIC_ID_LENGTH,
    SECRET_LENGTH,
    compose,
    public_id,
)
from anabranch.v1 import auth_pb2 as pb
from bench import cpu
from bench.auth import cores
from bench.auth.caller import Order, called, encoded
from bench.auth.failure import LookFailed
from bench.auth.leakage import leakage
from bench.auth.plan import T_LIMIT, Plan
from bench.auth.stack import replicas
from bench.dataplane.meter import percentile
from services.auth.passwords import new_secret

BUSY, CALM, LOGINS = "API keys, busy service", "API keys, calm service", "logins, one by one"
_KEY, _LOGIN = "ExchangeApiKey", "IssueToken"
_NAMES = 100
"""Keys and clients of each kind."""


async def look(folder: Path, plan: Plan) -> dict[str, dict[str, Any]]:
    """What the response times say of each RPC. Raises LookFailed."""
    async with replicas(folder) as auth:
        target = await auth.start("auth")
        async with auth.administrator("auth") as administrator:
            clients = await administrator.clients([f"known-client-{n:04}" for n in range(_NAMES)])
            keys = await administrator.keys(clients[0][0], _NAMES)
        pids = auth.pids("auth")
        cores.pin(pids, cores.service_core())
        known_ids = [public_id(key) for key in keys]
        other_ids = ["".join(_random(PUBLIC_ID_ALPHABET, PUBLIC_ID_LENGTH)) for _ in keys]
        other_names = [f"other-client-{n:04}" for n in range(_NAMES)]
        found = {}
        key_kinds = _exchanges(known_ids), _exchanges(other_ids)
        login_kinds = _logins([name for name, _ in clients]), _logins(other_names)
        for name, method, classes, each, in_flight in (
            (CALM, _KEY, key_kinds, plan.calm_key_samples, plan.calm_in_flight),
            (BUSY, _KEY, key_kinds, plan.busy_key_samples, plan.busy_in_flight),
            (LOGINS, _LOGIN, login_kinds, plan.login_samples, 1),
        ):
            order = Order(
                target=target,
                method=method,
                classes=classes,
                in_flight=in_flight,
                each=each,
                warm=2 * in_flight,
            )
            before = cpu.seconds(pids)
            outcome = await called(order, cores.caller_core())
            if set(outcome.statuses) != {"UNAUTHENTICATED"}:
                raise LookFailed(f"not every wrong {method} was refused: {outcome.statuses}")
            existing, unknown = ([1e6 * time for time in times] for times in outcome.times)
            found[name] = {
                **asdict(leakage(existing, unknown, T_LIMIT)),
                "in_flight": in_flight,
                "seconds": outcome.wall,
                "a_second": outcome.answers / outcome.wall,
                "service_cores": (cpu.seconds(pids) - before) / outcome.wall,
                "p50_us": [percentile(sorted(times), 50) for times in (existing, unknown)],
                "p99_us": [percentile(sorted(times), 99) for times in (existing, unknown)],
            }
    return found


def _exchanges(ids: list[str]) -> tuple[str, ...]:
    """Well-formed keys of these ids with secrets that nobody has."""
    return encoded(
        [
            pb.ExchangeApiKeyRequest(
                api_key=compose(key_id, "".join(_random(BASE62, SECRET_LENGTH)))
            )
            for key_id in ids
        ]
    )


def _logins(names: list[str]) -> tuple[str, ...]:
    return encoded(
        [pb.IssueTokenRequest(client_id=name, client_secret=new_secret()) for name in names]
    )


def _random(alphabet: str, count: int) -> list[str]:
    return [secrets.choice(alphabet) for _ in range(count)]
