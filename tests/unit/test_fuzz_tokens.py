"""Arbitrary and mutated tokens: refused, or the principal that the good token has; nothing else."""

import asyncio
import functools
import time

from hypothesis import given
from hypothesis import strategies as st

from anabranch.v1 import errors_pb2
from services.chassis.authn import KeySet, Verifier, bearer_token
from services.chassis.errors import Fault
from services.chassis.principal import Principal
from services.chassis.token_parsing import MalformedToken, parse_token
from tests.support.jwt_forge import Forge, b64, compact, local_forge

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
names = st.sampled_from(
    ["iss", "aud", "sub", "client_id", "tenant", "scope", "iat", "exp", "nbf", "jti"]
)
headers = st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jwk", "jku", "zip", "cty"])


class Scene:
    """One forge, its verifier, a good token and what that is worth."""

    def __init__(self) -> None:
        self.forge: Forge = local_forge()
        began = time.time()
        # Cached, the good token then outlives however long a run is.
        self.verifier = Verifier(
            self,
            issuer=self.forge.issuer,
            audience=self.forge.audience,
            clock=lambda: began,
            monotonic=lambda: began,
        )
        self.runner = asyncio.Runner()
        self.draft = self.forge.draft()
        self.good = self.draft.token()
        principal = self.tried(self.good)
        assert principal is not None
        self.principal: Principal = principal

    async def fetch(self, known_version: str = "", wait: float = 0.0) -> KeySet:
        return KeySet(self.forge.jwks(), max_age=300)

    def tried(self, token: str) -> Principal | None:
        """What a token is worth; None for one that is refused. Anything else is a failure."""
        try:
            return self.runner.run(self.verifier.verify(token))
        except Fault as fault:
            refused = fault
        assert refused.reason == errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED
        return None


@functools.cache
def scene() -> Scene:
    return Scene()


surrogates = st.text(st.characters(exclude_categories=()))


@given(surrogates | st.text(ALPHABET + ".=", max_size=6000))
def test_arbitrary_text_is_refused(text):
    assert scene().tried(text) is None


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_arbitrary_parts_are_refused(parts):
    assert scene().tried(".".join(map(b64, parts))) is None


@st.composite
def mutated(draw) -> str:
    """The good token after some edits of its text."""
    text = scene().good
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        until = draw(st.integers(at, min(len(text), at + 20)))
        put = draw(st.text(ALPHABET + ".", max_size=20) | surrogates)
        text = text[:at] + put + text[until:]
    return text


@given(mutated())
def test_a_mutated_token_is_refused_or_it_is_the_good_one(text):
    own = scene()
    assert own.tried(text) == (own.principal if text == own.good else None)


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_no_bit_of_a_token_may_flip(index, bit):
    own = scene()
    raw = bytearray(own.good.encode())
    raw[index % len(raw)] ^= 1 << bit
    assert own.tried(raw.decode("latin-1")) is None


@given(st.dictionaries(headers | st.text(), json_values, max_size=4))
def test_other_headers_are_refused_though_the_real_key_signs_them(changes):
    own = scene()
    draft = own.forge.draft()
    before = compact(draft.header)
    draft.header |= changes
    same = compact(draft.header) == before
    assert (own.tried(draft.token()) is not None) == same


@given(st.dictionaries(names, json_values, min_size=1, max_size=4))
def test_other_claims_by_the_real_key_never_raise_anything_else(changes):
    own = scene()
    draft = own.forge.draft()
    draft.claims |= changes
    principal = own.tried(draft.token())
    if principal is not None:
        claims = draft.claims
        assert principal.client_id == claims["sub"] == claims["client_id"]
        assert principal.scopes == frozenset(claims["scope"].split())
        assert (principal.tenant, principal.token_id) == (claims["tenant"], claims["jti"])
        assert 0 < claims["exp"] - claims["iat"] <= 600


@given(st.binary(max_size=500))
def test_arbitrary_bytes_for_claims_are_refused_though_the_real_key_signs_them(raw):
    own = scene()
    draft = own.forge.draft()
    draft.claims_json = raw
    assert own.tried(draft.token()) is None


@given(surrogates | mutated())
def test_parsing_raises_one_error_alone(text):
    try:
        parsed = parse_token(text)
    except MalformedToken:
        return
    assert parsed.header.keys() == {"alg", "typ", "kid"}


@given(surrogates)
def test_any_authorization_has_a_token_or_is_refused(value):
    try:
        token = bearer_token(value)
    except Fault as fault:
        reason = fault.reason
    else:
        assert token
        assert token in value
        return
    assert reason == errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED
