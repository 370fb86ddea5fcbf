"""Signing keys rotated a hundred times under load: no login and no check of a token ever fails.

Everything is real but the pace: once every verifier has heard of the next key, the clock of all
jumps to when it signs. So hours pass, keys are forgotten when their last tokens are dead, and
nothing is decided by how busy this machine is.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, deque
from pathlib import Path

import jwt
import pytest

from anabranch.v1 import auth_pb2 as pb
from services.chassis.authn import Verifier
from services.chassis.errors import Fault
from services.chassis.token_claims import LEEWAY_S
from tests.support.auth import Front, auth, bearer
from tests.support.auth_replicas import follower
from tests.support.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ROTATIONS = 100
LEAD = 120.0
LIFE = 600
CALLERS = 2
KEPT = 300


class Clock:
    """The machine's clock, so far ahead."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class Load:
    """Logins and checks without end; whatever fails ends the test."""

    def __init__(self, front: Front, clock: Clock, secret: str, api_key: str) -> None:
        self._front = front
        self._clock = clock
        self._secret = secret
        self._api_key = api_key
        self.tokens: deque[tuple[str, float]] = deque(maxlen=KEPT)
        self.kids: Counter[str] = Counter()
        self.checked = self.ended = 0

    async def issue(self) -> None:
        """Tokens by secret and by key."""
        login = pb.IssueTokenRequest(client_id="orders", client_secret=self._secret)
        exchange = pb.ExchangeApiKeyRequest(api_key=self._api_key)
        while True:
            for issued in (
                await self._front.stub.IssueToken(login),
                await self._front.stub.ExchangeApiKey(exchange),
            ):
                token = issued.access_token
                self.kids[jwt.get_unverified_header(token)["kid"]] += 1
                ends_at = jwt.decode(token, options={"verify_signature": False})["exp"]
                self.tokens.append((token, ends_at + LEEWAY_S))

    async def check(self, verifier: Verifier) -> None:
        """The newest token, as soon as it is there, and the others in turn."""
        number = 0
        while True:
            number += 1
            if self.tokens:
                for token, ends_at in (self.tokens[-1], self.tokens[number % len(self.tokens)]):
                    await self.check_one(verifier, token, ends_at)
            await asyncio.sleep(0.002)

    async def check_one(self, verifier: Verifier, token: str, ends_at: float) -> None:
        """Good exactly until its end."""
        over = self._clock() >= ends_at
        try:
            principal = await verifier.verify(token)
        except Fault:
            assert self._clock() >= ends_at
            self.ended += 1
        else:
            assert (principal.client_id, over) == ("orders", False)
            self.checked += 1

    async def ask(self) -> None:
        """The service itself, about the newest token and with it."""
        while True:
            if self.tokens:
                token, _ = self.tokens[-1]
                request = pb.IntrospectTokenRequest(token=token)
                found = await self._front.stub.IntrospectToken(request, metadata=bearer(token))
                assert found.active
            await asyncio.sleep(0.002)


async def all_know(verifiers: tuple[Verifier, ...], kid: str) -> bool:
    """Whether every service would take a token that this key has signed."""
    return all(kid in verifier._keys for verifier in verifiers)


async def published(front: Front) -> list[str]:
    found = await front.stub.GetJwks(pb.GetJwksRequest())
    return [key["kid"] for key in json.loads(found.jwks_json)["keys"]]


async def test_a_hundred_rotations_under_load_fail_nobody(tmp_path: Path) -> None:
    clock = Clock()
    settings = {"rotation_publish_ahead": LEAD, "refresh_period": 0.1, "token_life": LIFE}
    async with (
        auth(tmp_path, clock=clock, login_burst=1_000_000, **settings) as front,
        follower(front, clock=clock) as following,
    ):
        assert front.own is not None
        verifiers = (front.own, following)
        secret = await front.new_client("orders")
        request = pb.CreateApiKeyRequest(client_id="orders")
        api_key = (await front.as_admin(front.stub.CreateApiKey, request)).api_key
        load = Load(front, clock, secret, api_key)
        async with asyncio.TaskGroup() as tasks:
            working = [tasks.create_task(load.issue()) for _ in range(CALLERS)]
            working += [tasks.create_task(load.check(following)) for _ in range(CALLERS)]
            working.append(tasks.create_task(load.ask()))
            for _ in range(ROTATIONS):
                rotate = pb.RotateSigningKeyRequest()
                kid = (await front.as_admin(front.stub.RotateSigningKey, rotate)).kid
                await until(lambda kid=kid: all_know(verifiers, kid), during=working)
                assert load.kids[kid] == 0, "it does not sign before its time"
                clock.ahead += LEAD

                async def signs(kid: str = kid) -> bool:
                    return load.kids[kid] > 0

                await until(signs, during=working)
            for task in working:
                task.cancel()
        assert len(load.kids) == ROTATIONS + 1
        assert load.checked > 10 * ROTATIONS
        assert load.ended
        # Those whose tokens are dead are forgotten; the others are a few.
        assert 0 < len(await published(front)) < 20
        async with follower(front, clock=clock) as late:
            # One that starts now takes every token that lives.
            for token, ends_at in load.tokens:
                await load.check_one(late, token, ends_at)
