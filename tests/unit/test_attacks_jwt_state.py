"""Attacks that take time or a second call: caches, revocations, keys that come and go, floods."""

import asyncio
import json
import time

import pytest

from anabranch.v1 import errors_pb2
from services.chassis.authn import REFRESH_ON_UNKNOWN_KEY_S, KeySet, Verifier
from services.chassis.errors import Fault
from tests.support.jwt_attacks import ACCEPTED, high_s
from tests.support.jwt_forge import (
    Forge,
    b64,
    by_ed25519,
    compact,
    ed_jwk,
    header,
    local_forge,
    unb64,
)


class World:
    """A verifier, what it is told of keys and revocations, and its two clocks."""

    def __init__(self) -> None:
        self.forge = local_forge()
        self.jwks = self.forge.jwks()
        self.revoked: frozenset[str] = frozenset()
        self.disabled: frozenset[str] = frozenset()
        self.asked = 0
        self.away = False
        self.passed = 0.0
        self.verifier = Verifier(
            self,
            issuer=self.forge.issuer,
            audience=self.forge.audience,
            clock=lambda: time.time() + self.passed,
            monotonic=lambda: 1000 + self.passed,
        )

    async def fetch(self, known_version: str = "", wait: float = 0.0) -> KeySet:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise Fault(errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE, "away")
        return KeySet(self.jwks, 300, self.revoked, self.disabled)

    async def accepts(self, token: str) -> bool:
        try:
            await self.verifier.verify(token)
        except Fault as fault:
            refused = fault
        else:
            return True
        assert refused.reason == errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED
        return False

    async def hears_the_news(self) -> None:
        """What the loop that polls does."""
        await self.verifier._refresh()

    def unknown(self, kid: str) -> str:
        return header(kid=kid).make(self.forge)[1]

    def publish(self, **keys: object) -> None:
        self.jwks = json.dumps({"keys": [ed_jwk(key, kid) for kid, key in keys.items()]})


@pytest.fixture
def world() -> World:
    return World()


def jti(token: str) -> str:
    return str(json.loads(unb64(token.split(".")[1]))["jti"])


async def test_a_token_like_a_cached_one_is_not_taken_for_it(world):
    good, other = world.forge.good(), world.forge.good()
    assert await world.accepts(good)
    head, body, signature = good.split(".")
    swapped = {
        "same header and claims, another signature": f"{head}.{body}.{other.split('.')[2]}",
        "same header and signature, other claims": f"{head}.{other.split('.')[1]}.{signature}",
        "all but the last character": good[:-1],
        "one character more": good + "A",
        "other case": good.swapcase(),
        **{
            f"the first {n} characters": good[:n] + ("A" if good[n] != "A" else "B") + good[n + 1 :]
            for n in (0, 16, 32, 64, 128, 256, len(good) - 1)
        },
    }
    for name, token in swapped.items():
        assert not await world.accepts(token), name
        assert not await world.accepts(token), f"{name}, again"
    assert await world.accepts(good)


async def test_a_cached_token_ends_when_it_ends(world):
    good = world.forge.good()
    assert await world.accepts(good)
    world.passed = 300 + 29 - 10
    assert await world.accepts(good)
    world.passed = 300 + 31
    assert not await world.accepts(good)


async def test_a_revoked_token_is_refused_whether_it_was_seen_before_or_not(world):
    seen, unseen, other = (world.forge.good() for _ in range(3))
    assert await world.accepts(seen)
    world.revoked = frozenset({jti(seen), jti(unseen)})
    await world.hears_the_news()
    assert not await world.accepts(seen)
    assert not await world.accepts(unseen)
    assert await world.accepts(other)


async def test_tokens_of_a_disabled_client_are_refused(world):
    seen = world.forge.good()
    other = Forge(**{**vars(world.forge), "client_id": "somebody-else"}).good()
    assert await world.accepts(seen)
    world.disabled = frozenset({world.forge.client_id})
    await world.hears_the_news()
    assert not await world.accepts(seen)
    assert not await world.accepts(world.forge.good())
    assert await world.accepts(other)


async def test_revoking_a_token_ends_its_second_spelling_too(world):
    """ES256 has two signatures for one: the second text is another to the cache, and the same to
    a revocation."""
    first, second = ACCEPTED["ES256 with the other s"].make(world.forge)
    assert first != second
    signed, _, signature = first.rpartition(".")
    assert second == f"{signed}.{b64(high_s(unb64(signature)))}"
    assert await world.verifier.verify(first) == await world.verifier.verify(second)
    world.revoked = frozenset({jti(first)})
    await world.hears_the_news()
    assert not await world.accepts(first)
    assert not await world.accepts(second)


async def test_tokens_of_a_key_that_is_gone_are_refused_even_when_cached(world):
    seen, unseen, of_other_key = world.forge.good(), world.forge.good(), world.forge.good("ES256")
    assert await world.accepts(seen)
    assert await world.accepts(of_other_key)
    keys = json.loads(world.jwks)["keys"]
    world.jwks = json.dumps({"keys": [key for key in keys if key["kid"] == world.forge.es_kid]})
    assert await world.accepts(seen)
    await world.hears_the_news()
    assert not await world.accepts(seen)
    assert not await world.accepts(unseen)
    assert await world.accepts(of_other_key)


async def test_a_key_replaced_under_its_own_kid_ends_the_old_ones_tokens(world):
    seen = world.forge.good()
    assert await world.accepts(seen)
    world.publish(**{world.forge.ed_kid: world.forge.stranger})
    await world.hears_the_news()
    assert not await world.accepts(seen)


async def test_a_new_key_does_not_cost_what_is_cached(world):
    seen = world.forge.good()
    assert await world.accepts(seen)
    keys = json.loads(world.jwks)["keys"]
    world.jwks = json.dumps({"keys": [*keys, ed_jwk(world.forge.forgotten, "new")]})
    await world.hears_the_news()
    assert len(world.verifier._cache) == 1
    assert await world.accepts(seen)


async def test_the_same_kid_of_another_issuers_key_set_means_nothing(world):
    other = local_forge()
    assert other.ed_kid == world.forge.ed_kid
    assert await world.accepts(world.forge.good())
    assert not await world.accepts(other.good())
    assert not await world.accepts(other.good("ES256"))


async def test_a_flood_of_unknown_kids_asks_for_the_keys_once_in_thirty_seconds(world):
    assert await world.accepts(world.forge.good())
    world.passed = 1.0
    asked = world.asked
    tokens = [world.unknown(f"kid-{n}") for n in range(100)]
    assert not any(await asyncio.gather(*map(world.accepts, tokens)))
    for token in tokens:
        assert not await world.accepts(token)
    world.passed = REFRESH_ON_UNKNOWN_KEY_S - 1
    assert not any(await asyncio.gather(*map(world.accepts, tokens)))
    assert world.asked - asked <= 1
    world.passed = 2 * REFRESH_ON_UNKNOWN_KEY_S
    asked = world.asked
    assert not any(await asyncio.gather(*map(world.accepts, tokens)))
    assert world.asked - asked == 1


async def test_a_flood_while_the_auth_service_is_away_hurts_no_known_key(world):
    assert await world.accepts(world.forge.good())
    world.away = True
    world.passed = 2 * REFRESH_ON_UNKNOWN_KEY_S
    asked = world.asked
    tokens = [world.unknown(f"kid-{n}") for n in range(100)]
    assert not any(await asyncio.gather(*map(world.accepts, tokens)))
    assert world.asked - asked == 1
    assert await world.accepts(world.forge.good())


async def test_malformed_tokens_with_unknown_kids_ask_for_nothing(world):
    assert await world.accepts(world.forge.good())
    world.passed = 2 * REFRESH_ON_UNKNOWN_KEY_S
    asked = world.asked
    head = b64(compact({"alg": "EdDSA", "typ": "at+jwt", "kid": "nobody"}))
    for token in (f"{head}.{b64(b'{}')}.{b64(b's' * 64)}", f"{head}..", f"{head}.x.y"):
        assert not await world.accepts(token)
    assert world.asked == asked


async def test_a_key_that_was_just_published_is_found_by_its_first_token(world):
    assert await world.accepts(world.forge.good())
    world.passed = 2 * REFRESH_ON_UNKNOWN_KEY_S
    world.publish(new=world.forge.forgotten)
    draft = world.forge.draft()
    draft.header["kid"] = "new"
    draft.sign = by_ed25519(world.forge.forgotten)
    assert await world.accepts(draft.token())


@pytest.mark.parametrize(
    "entry",
    [
        {"kty": "oct", "k": b64(b"s" * 32), "kid": "odd", "alg": "HS256"},
        {"kty": "oct", "k": b64(b"s" * 32), "kid": "odd", "alg": "HS256", "crv": "Ed25519"},
        {"kty": "RSA", "n": b64(b"\xff" * 256), "e": "AQAB", "kid": "odd", "alg": "RS256"},
        {"kty": "OKP", "crv": "X25519", "x": b64(b"x" * 32), "kid": "odd"},
        {"kty": "OKP", "crv": "Ed448", "x": b64(b"x" * 57), "kid": "odd"},
        {"kty": "EC", "crv": "P-384", "x": "AQ", "y": "AQ", "kid": "odd"},
    ],
    ids=lambda entry: f"{entry['kty']} {entry.get('crv', '')}",
)
async def test_keys_of_other_kinds_in_the_set_are_passed_over(world, entry):
    world.jwks = json.dumps({"keys": [entry, *json.loads(world.jwks)["keys"]]})
    assert await world.accepts(world.forge.good())
    assert "odd" not in world.verifier._keys


async def test_a_key_for_encryption_signs_nothing(world):
    assert await world.accepts(world.forge.good())
    keys = [{**key, "use": "enc"} for key in json.loads(world.jwks)["keys"]]
    world.jwks = json.dumps({"keys": keys})
    await world.hears_the_news()
    assert not await world.accepts(world.forge.good())
