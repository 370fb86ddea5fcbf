"""The verifier against every attack of the catalogue: the good token passes, the other does not."""

import asyncio
import traceback
from contextlib import asynccontextmanager

import pytest

from anabranch.v1 import errors_pb2
from services.chassis.authn import KeySet, Verifier, bearer_token
from services.chassis.errors import Fault
from services.chassis.principal import rejected
from tests.support.jwt_attacks import ACCEPTED, ATTACKS, cases
from tests.support.jwt_forge import Forge, local_forge

CASES = dict(cases())


class Keys:
    """The forge's own keys, as the auth service would publish them."""

    def __init__(self, forge: Forge) -> None:
        self._forge = forge

    async def fetch(self, known_version: str = "", wait: float = 0.0) -> KeySet:
        return KeySet(self._forge.jwks(), max_age=300)


@pytest.fixture(scope="module")
def forge() -> Forge:
    return local_forge()


def verifier(forge: Forge) -> Verifier:
    return Verifier(Keys(forge), issuer=forge.issuer, audience=forge.audience)


async def refusal(verifier: Verifier, token: str) -> Fault:
    with pytest.raises(Fault) as caught:
        await verifier.verify(token)
    return caught.value


@pytest.mark.parametrize("name", CASES)
async def test_the_good_token_is_let_in_and_the_changed_one_is_not(forge, name):
    """Among the cases: `kid` injection, as path, SQL and address."""
    good, changed = CASES[name].make(forge)
    assert good != changed
    own = verifier(forge)
    assert (await own.verify(good)).client_id == forge.client_id
    fault = await refusal(own, changed)
    assert fault.reason == errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED
    assert fault.message == rejected().message


@pytest.mark.parametrize("name", CASES)
async def test_an_attack_leaves_nothing_behind_for_the_good_token(forge, name):
    good, changed = CASES[name].make(forge)
    own = verifier(forge)
    await refusal(own, changed)
    assert (await own.verify(good)).client_id == forge.client_id
    await refusal(own, changed)


@pytest.mark.parametrize("name", CASES)
async def test_no_part_of_a_refused_token_is_in_the_error_or_its_causes(forge, name):
    _, changed = CASES[name].make(forge)
    told = "".join(traceback.format_exception(await refusal(verifier(forge), changed)))
    assert not [part for part in changed.split(".") if len(part) > 40 and part[:40] in told]


@pytest.mark.parametrize("name", ACCEPTED)
async def test_what_is_unusual_but_right_is_let_in(forge, name):
    own = verifier(forge)
    for token in ACCEPTED[name].make(forge):
        assert (await own.verify(token)).client_id == forge.client_id


def test_the_catalogue_holds_as_many_classes_as_it_says():
    assert len(ATTACKS) >= 90
    assert all(ATTACKS.values())
    assert len(CASES) == sum(map(len, ATTACKS.values())) >= 500


@asynccontextmanager
async def listener():
    """An address where somebody counts who connects."""
    seen = []

    async def count(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("peername"))
        writer.close()

    server = await asyncio.start_server(count, "127.0.0.1", 0)
    async with server:
        yield seen, server.sockets[0].getsockname()[1]


async def test_nobody_connects_to_where_a_token_says_its_key_is(forge):
    async with listener() as (seen, port):
        there = Forge(**{**vars(forge), "attacker_url": f"http://127.0.0.1:{port}/keys"})
        own = verifier(there)
        kinds = [kind for kind in ATTACKS if kind.startswith("key behind")]
        assert len(kinds) == 3
        for kind in kinds:
            for attack in ATTACKS[kind].values():
                await refusal(own, attack.make(there)[1])
        # Connections come in order: had there been another, it would be seen before this one.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        assert seen == [writer.get_extra_info("sockname")]
        writer.close()


@pytest.mark.parametrize(
    "value",
    [
        "", " ", "Bearer", "Bearer ", "Bearer  ", "{}", "Basic {}", "Digest {}", "Token {}",
        "Bearer: {}", "Bearer={}", "Bearer\t{}", "Bearer\u00a0{}", " Bearer {}", "Bearer,{}",
        "Bear er {}", "Bearer2 {}", "\u212aearer {}", "JWT {}", "Bearer\n{}", "DPoP {}",
    ],
)  # fmt: skip
def test_what_is_no_bearer_credential_has_no_token(value):
    assert bearer_token("Bearer x") == "x"
    with pytest.raises(Fault):
        bearer_token(value.format("x"))


@pytest.mark.parametrize(
    "value",
    ["Bearer Bearer {}", "Bearer {} {}", "Bearer {}, Bearer {}", "Bearer {}\u00a0", "Bearer {},"],
)
async def test_more_than_a_token_is_no_token(forge, value):
    good = forge.good()
    own = verifier(forge)
    assert await own.verify(bearer_token(f"Bearer {good}"))
    await refusal(own, bearer_token(value.format(good, good)))


@pytest.mark.parametrize("value", ["Bearer {}", "bearer {}", "BEARER {}", "bEARER  {} "])
def test_the_schemes_case_and_spaces_around_do_not_matter(value):
    assert bearer_token(value.format("x")) == "x"
