"""A scene and its model side by side: what is expected of tokens, of secrets and of the trail.

What is done, and in which order, the state machine says (test_auth_state_machine.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from typing import Any

import jwt

from anabranch.v1 import auth_pb2 as pb
from services.chassis.audit.entry import parse_line
from services.chassis.audit.head import Head, is_genuine
from services.chassis.principal import Principal
from tests.support.auth_model import Client, Key, Token, World, named
from tests.support.auth_scene import Scene, answer, seen_by
from tests.support.waiting import until

NOTED = ("token.issue", "key.exchange")
_SETTLED_S = 20.0


class Watched:
    """A running service, what it should be like, and the ways to compare the two."""

    def __init__(self) -> None:
        self.scene = Scene()
        self.world = World()
        self.changes: list[tuple[str, str, str]] = [("client.create", "", "admin")]
        self.written: list[tuple[str, str, str]] = []
        self.noted: Counter[str] = Counter()
        self.noted_in_trail: Counter[str] = Counter()
        self.trail_end: tuple[int, bytes] = (0, bytes(32))
        # What the follower was told of keys, each with the time from which it asks again.
        self.held: dict[str, tuple[Token, float]] = {}

    async def ends(self) -> None:
        """At the end: nothing of the past works, and every login is written down once."""
        for client_id, secret in self.past():
            await self.is_refused(client_id, secret)

        async def all_written() -> bool:
            await self.read_trail()
            expected = self.noted + Counter({"token.issue": self.scene.admin_logins})
            assert self.noted_in_trail <= expected
            return self.noted_in_trail == expected

        await until(all_written)

    def past(self) -> list[tuple[str, str]]:
        """Secrets that were replaced or whose client is disabled, and, without a client, keys that
        are good no more."""
        secrets = [
            (client.client_id, secret)
            for client in self.world.clients.values()
            for secret in (client.secrets if client.disabled else client.secrets[:-1])
        ]
        now = self.scene.now
        return secrets + [
            ("", key.text) for key in self.world.keys.values() if not self.world.is_good(key, now)
        ]

    async def is_refused(self, client_id: str, secret: str) -> None:
        """Without a client the secret is an API key."""
        stub = self.scene.stub
        if client_id:
            request = pb.IssueTokenRequest(client_id=client_id, client_secret=secret)
            got = await answer(stub.IssueToken(request))
        else:
            got = await answer(stub.ExchangeApiKey(pb.ExchangeApiKeyRequest(api_key=secret)))
        assert got == "CREDENTIAL_REJECTED"

    # Tokens

    def given_by(self, key: Key) -> tuple[Client, frozenset[str], Key]:
        """Whose token a key gives, and with which scopes."""
        client = self.world.clients[key.client_id]
        return client, self.world.scopes_of(client) & key.scopes, key

    def is_live(self, token: Token) -> bool:
        """Whether anybody may still accept it."""
        return self.world.is_live(token, self.scene.now)

    def key_is_used_elsewhere(self, key: Key) -> None:
        """Sends the key itself to the follower, which asks for its token when it holds none."""
        now = self.scene.now
        seen = self.scene.run(seen_by(self.scene.follower, key.text))
        token, renewed_at = self.held.get(key.key_id, (None, 0.0))
        if token is None or now >= renewed_at:
            if not self.world.is_good(key, now):
                self.held.pop(key.key_id, None)
                assert seen is None
                return
            self.noted["key.exchange"] += 1
            client, scopes, _ = self.given_by(key)
            assert seen is not None
            life = self.life_of(client, key)
            token = self.token("", seen.token_id, client, scopes, life, key)
            ahead = min(60, (token.expires_at - now) / 4)
            self.held[key.key_id] = token, token.expires_at - ahead
        assert says(seen) == (says(token) if self.is_live(token) else None)

    def life_of(self, client: Client, key: Key | None) -> int:
        """Seconds that a token of now lives."""
        if key is None or key.expires_at is None:
            return client.life
        return min(client.life, max(1, int(key.expires_at) - int(self.scene.now)))

    def token(
        self,
        text: str,
        token_id: str,
        client: Client,
        scopes: frozenset[str],
        life: int,
        key: Key | None,
    ) -> Token:
        """What a token that is issued now must say."""
        models = self.world.models_of(client)
        now = int(self.scene.now)
        return Token(
            text,
            token_id,
            client.client_id,
            client.tenant,
            scopes,
            models if key is None else models & key.models,
            self.world.quotas_of(client),
            now,
            now + life,
            self.world.signer(self.scene.now),
            "" if key is None else key.key_id,
        )

    def issued(
        self, got: Any, client: Client, scopes: frozenset[str], key: Key | None = None
    ) -> None:
        """Keeps a token that was just issued, once it says what it must."""
        claims = jwt.decode(got.access_token, options={"verify_signature": False})
        life = self.life_of(client, key)
        token = self.token(got.access_token, claims["jti"], client, scopes, life, key)
        assert (frozenset(got.scopes), got.expires_in.seconds) == (scopes, life)
        assert jwt.get_unverified_header(token.text)["kid"] == token.kid
        assert token.token_id not in {other.token_id for other in self.world.tokens}
        self.world.tokens.append(token)

    def introspected(self, token: Token) -> pb.IntrospectTokenResponse:
        """What an administrator must be told of it."""
        if not self.is_live(token):
            return pb.IntrospectTokenResponse()
        found = pb.IntrospectTokenResponse(
            active=True,
            client_id=token.client_id,
            tenant=token.tenant,
            scopes=sorted(token.scopes),
            token_id=token.token_id,
        )
        found.issued_at.FromSeconds(token.issued_at)
        found.expires_at.FromSeconds(token.expires_at)
        return found

    async def settled(self) -> None:
        """All views agree with the model: at once at the service, soon elsewhere."""
        admin, tokens = await self.scene.admin(), self.world.tokens
        asked = [pb.IntrospectTokenRequest(token=token.text) for token in tokens]
        ask = self.scene.stub.IntrospectToken
        got = await asyncio.gather(*(answer(ask(one, metadata=admin)) for one in asked))
        assert got == [self.introspected(token) for token in tokens]
        live = [self.is_live(token) for token in tokens]
        expected = [says(token) if ok else None for token, ok in zip(tokens, live, strict=True)]
        give_up = time.monotonic() + _SETTLED_S
        for verifier in (self.scene.own, self.scene.follower):
            while True:
                seen = [says(await seen_by(verifier, token.text)) for token in tokens]
                if seen == expected:
                    break
                assert time.monotonic() < give_up, [
                    pair for pair in zip(seen, expected, strict=True) if pair[0] != pair[1]
                ]
                await asyncio.sleep(0.005)

    async def all_know(self, kid: str) -> None:
        """Waits until both verifiers have heard of a key, as its lead lets them in production."""

        async def so() -> bool:
            return all(kid in one._keys for one in (self.scene.own, self.scene.follower))

        await until(so)

    async def published(self) -> set[str]:
        """The ids of the published keys."""
        found = await self.scene.stub.GetJwks(pb.GetJwksRequest())
        return {key["kid"] for key in json.loads(found.jwks_json)["keys"]}

    # The trail

    async def read_trail(self) -> None:
        """Reads on, checking that each entry follows the one before it."""
        request, new = pb.QueryAuditRequest(page_size=200), []
        while True:
            page = await self.scene.stub.QueryAudit(request, metadata=await self.scene.admin())
            new += [r for r in page.records if r.sequence > self.trail_end[0]]
            if not page.next_page_token or page.records[-1].sequence <= self.trail_end[0]:
                break
            request.page_token = page.next_page_token
        for record in reversed(new):
            sequence, previous = self.trail_end
            assert (record.sequence, record.previous_hash) == (sequence + 1, previous)
            assert record.hash == hashlib.sha256(previous + record.canonical).digest()
            line = b'{"entry":%s,"hash":"%s"}\n' % (record.canonical, record.hash.hex().encode())
            act = parse_line(line).entry.act
            if act.succeeded and act.action in NOTED:
                self.noted_in_trail[act.action] += 1
            elif act.succeeded:
                self.written.append((act.action, act.client_id, act.target))
            self.trail_end = record.sequence, record.hash
        assert is_genuine(head_of(page.head))
        assert page.head.sequence >= self.trail_end[0]


def says(credential: Principal | Token | None) -> Any:
    """What matters of it, in one form for the model and for the service."""
    if credential is None or isinstance(credential, Token):
        found = credential
        models = found.models if found else frozenset()
        quotas = found.quotas if found else frozenset()
    else:
        found = credential
        models = named(found.models)
        quotas = frozenset(
            (str(q.subject), str(q.unit), q.limit, q.period, q.burst, q.model) for q in found.quotas
        )
    if found is None:
        return None
    key_id = found.key_id if isinstance(found, Token) else found.api_key_id
    end = float(found.expires_at)
    return found.client_id, found.tenant, found.scopes, models, quotas, end, found.token_id, key_id


def head_of(head: Any) -> Head:
    """A head as the chassis knows it."""
    return Head(
        head.trail,
        head.sequence,
        head.hash,
        head.time.ToMicroseconds(),
        head.key_id,
        head.public_key,
        head.signature,
    )
