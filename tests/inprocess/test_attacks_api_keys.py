"""API keys that are none, or somebody else's: one answer for all, and no key is taken for another.

The published holes behind these: a cache of verdicts keyed by a prefix of the credential (LiteLLM,
the first 20 characters of a JWT), keys compared with `==` or found by LIKE (SQL injection into the
key look-up of LiteLLM and others), and an answer that tells a known key from an unknown one
(OWASP API2:2023).
"""

import asyncio
import random
import string
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from anabranch.api_keys import BASE62, CHECKSUM_LENGTH, checksum, compose, public_id
from anabranch.v1 import auth_pb2 as pb
from services.auth.api_keys import ApiKeys
from services.auth.passwords import Passwords
from services.chassis.errors import Fault
from tests.support.attackers import (
    created,
    exchanged,
    fault_of,
    key_of,
    login,
    told,
    with_secret_of_another,
)
from tests.support.auth import Front, auth, bearer
from tests.support.raw_http2 import message, peer, request

LIST_ROLES = "/anabranch.v1.AuthService/ListRoles"


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with auth(tmp_path) as opened:
        yield opened


async def used(front: Front, credential: str) -> Fault | None:
    """How an RPC for administrators refuses this credential; None when it does not."""
    call = front.stub.ListRoles(pb.ListRolesRequest(), metadata=bearer(credential))
    return await fault_of(call)


def wrong_keys(good: str, other: str) -> dict[str, str]:
    """By what is wrong with them, from two good keys."""
    body = good[:-CHECKSUM_LENGTH]
    last = BASE62[(BASE62.index(body[-1]) + 1) % len(BASE62)]
    near = body[:-1] + last
    mixed = compose(public_id(good), other[21:-CHECKSUM_LENGTH])
    return {
        "the prefix alone": "abk_",
        "prefix and id": good[:20],
        "prefix, id and separator": good[:21],
        "without its checksum": body,
        "checksum wrong": body + "000000",
        "unknown, its checksum right": compose("0123456789abcdef", "A" * 43),
        "right id, another secret": with_secret_of_another(good),
        "right id, last character of the secret changed": near + checksum(near),
        "right id, the secret of another key": mixed,
        "one character too long": good + "0",
        "one character short": good[:-1],
        "upper case": good.upper(),
        "lower case": good.lower(),
        "prefix in upper case": "ABK_" + good[4:],
        "twice": good + good,
        "trailing dot": good + ".",
        "as three parts of a token": f"{good}.{good}.{good}",
        "SQL quote": "abk_' OR '1'='1",
        "SQL wildcards": "abk_" + "%" * 16 + "_" + "A" * 49,
        "SQL underscores": "abk_" + "_" * 16 + "_" + "A" * 49,
        "quoted": f'"{good}"',
        "its hash's place": "0" * 64,
    }


UNICODE = {
    "Cyrillic a": lambda good: "\u0430" + good[1:],
    "full-width": lambda good: "".join(chr(ord(c) + 0xFEE0) for c in good),
    "Arabic digits": lambda good: good.replace("0", "\u0660").replace("1", "\u0661") + "\u0660",
    "zero-width space": lambda good: good[:8] + "\u200b" + good[8:],
    "byte order mark": lambda good: "\ufeff" + good,
    "soft hyphen at the end": lambda good: good + "\u00ad",
    "NUL at the end": lambda good: good + "\0",
    "line end": lambda good: good + "\n",
    "line separator": lambda good: good + "\u2028",
}


async def test_every_bad_key_gets_one_answer_as_a_credential(front: Front) -> None:
    """OWASP API2:2023: what is wrong with a credential is nobody's business."""
    good, other = await key_of(front, "admin"), await key_of(front, "admin")
    assert await used(front, good) is None
    answers = {}
    for name, wrong in wrong_keys(good, other).items():
        answers[name] = told(await used(front, wrong))
    assert len(set(answers.values())) == 1, answers
    assert answers["the prefix alone"][0] is grpc.StatusCode.UNAUTHENTICATED


async def test_every_bad_key_gets_one_answer_at_the_exchange(front: Front) -> None:
    """The same where keys are exchanged, which is also where Unicode can be sent."""
    good, other = await key_of(front, "admin"), await key_of(front, "admin")
    assert list((await exchanged(front, good)).scopes)
    wrong = wrong_keys(good, other) | {n: make(good) for n, make in UNICODE.items()}
    wrong["a token in place of a key"] = (await front.token())[:256]
    wrong["a client's secret in place of a key"] = front.secret
    answers = {name: told(await fault_of(exchanged(front, key))) for name, key in wrong.items()}
    assert len(set(answers.values())) == 1, answers
    assert answers["NUL at the end"][0] is grpc.StatusCode.UNAUTHENTICATED


async def test_bytes_that_only_look_like_the_key_are_not_the_key(front: Front) -> None:
    """Look-alikes as bytes of a header, where no gRPC library would let them pass."""
    good = await key_of(front, "admin")
    async with peer(front.port) as raw:
        for i, make in enumerate(UNICODE.values()):
            number = 2 * i + 1
            value = b"Bearer " + make(good).encode()
            raw.open(number, request(LIST_ROLES, ("authorization", value)))
            raw.data(number, message(b""), end=True)
            if value[-1:] in (b"\0", b"\n"):  # no header field at all
                assert await raw.reset_with(number) == "PROTOCOL_ERROR", value
            else:
                assert await raw.status(number) == "UNAUTHENTICATED", value


async def test_a_key_opens_nothing_from_any_other_place(front: Front) -> None:
    """A good key in a field where something else is read, or around a credential."""
    good, token = await key_of(front, "admin"), await front.token()
    places = [
        [("x-api-key", good)],
        [("api-key", good)],
        [("proxy-authorization", f"Bearer {good}")],
        [("x-authorization", f"Bearer {good}")],
        [("cookie", f"authorization=Bearer {good}")],
        [("authorization", good)],
        [("authorization", f"Basic {good}")],
        [("authorization", f"Bearer Bearer {good}")],
        [("authorization", f"Bearer {good} {token}")],
        [("authorization", f"Bearer {good},{token}")],
        [("authorization-bin", f"Bearer {good}".encode())],
    ]
    answers = set()
    for metadata in places:
        call = front.stub.ListRoles(pb.ListRolesRequest(), metadata=metadata)
        answers.add(told(await fault_of(call)))
    assert len(answers) == 1, answers
    wrong = told(await login(front, "admin", "wrong"))
    assert told(await login(front, "admin", good)) == wrong
    assert told(await login(front, "admin", token[:256])) == wrong


async def test_keys_with_the_same_beginning_never_share_a_verdict(front: Front) -> None:
    """LiteLLM's cache of verdicts was keyed by the first 20 characters of a credential."""
    good = await key_of(front, "admin")
    bad = with_secret_of_another(good)
    assert bad.startswith(good[:20])
    for first, second in ((good, bad), (bad, good)):
        for key in (first, second, first):
            fault = await used(front, key)
            assert (fault is None) is (key == good)
    fresh = await key_of(front, "admin")
    forged = with_secret_of_another(fresh)
    at_once = [fresh, forged] * 10
    found = await asyncio.gather(*(used(front, key) for key in at_once))
    assert [fault is None for fault in found] == [key == fresh for key in at_once]


async def test_tokens_with_the_same_beginning_never_share_a_verdict(front: Front) -> None:
    """The same of tokens, whose header is the same for everybody: 20 characters tell nothing.

    CVE-2026-35030, GHSA-jjhc-v7c2-5hh6 (LiteLLM).
    """
    secret = await created(front, "orders")
    admin, mine = await front.token(), await front.token("orders", secret)
    assert mine.startswith(admin[:60])
    tampered = admin[:-2] + ("AA" if admin[-2:] != "AA" else "BA")
    expected = {admin: None, mine: "PERMISSION_DENIED", tampered: "UNAUTHENTICATED"}
    for token in (admin, mine, tampered, mine, admin, tampered):
        fault = await used(front, token)
        assert (fault.code.name if fault else None) == expected[token]


async def test_a_refusal_leaves_at_one_time_whatever_was_looked_up(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timing (CWE-208): unknown id, wrong secret, revoked and malformed wait for the same moment.

    CVE-2025-59425 (vLLM). The clock is the test's: each kind of look-up takes another time by it.
    """
    good, ended = await key_of(front, "admin"), await key_of(front, "admin")
    await front.as_admin(front.stub.RevokeApiKey, pb.RevokeApiKeyRequest(key_id=public_id(ended)))
    clock = _Clock()
    took = iter([0.001, 0.0042, 0.009])
    look_up = ApiKeys._good

    async def slowly(self: ApiKeys, api_key: str) -> object:
        found = await look_up(self, api_key)
        clock.now += next(took)
        return found

    monkeypatch.setattr(ApiKeys, "_good", slowly)
    monkeypatch.setattr("services.auth.api_keys.asyncio", clock)
    bad = [compose("0" * 16, "A" * 43), with_secret_of_another(good), ended, "abk_malformed"]
    for key in bad:
        assert await fault_of(exchanged(front, key)) is not None
    assert clock.woken == pytest.approx([100.01] * len(bad))


class _Clock:
    """Stands for asyncio in api_keys.py: a loop whose time goes on only by look-ups."""

    def __init__(self) -> None:
        self.now = 100.0
        self.woken: list[float] = []

    def get_running_loop(self) -> "_Clock":
        self.now = 100.0
        return self

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.woken.append(self.now + seconds)


async def test_a_wrong_login_costs_one_hash_whatever_is_wrong(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timing (CWE-208): unknown client, wrong secret, disabled client, and a client that may not
    log in from here, with its right secret: as slow, and counted alike as a guess."""
    gone = await created(front, "gone")
    await front.as_admin(front.stub.DisableClient, pb.DisableClientRequest(client_id="gone"))
    away = await created(front, "elsewhere", allowed_cidrs=["10.0.0.0/8"])
    hashes = []
    verify = Passwords._verified

    def counted(self: Passwords, secret_hash: str, secret: str) -> bool:
        hashes.append(secret_hash)
        return verify(self, secret_hash, secret)

    monkeypatch.setattr(Passwords, "_verified", counted)
    answers = set()
    for client_id, secret in (
        ("nobody", "wrong"),
        ("admin", "wrong"),
        ("gone", gone),
        ("gone", gone),
        ("elsewhere", away),
        ("elsewhere", away),
        ("elsewhere", "wrong"),
    ):
        before = len(hashes)
        answers.add(told(await login(front, client_id, secret)))
        assert len(hashes) == before + 1, (client_id, secret)
    assert len(answers) == 1, answers


async def test_a_stolen_secret_cannot_be_tried_without_end_from_elsewhere(tmp_path: Path) -> None:
    """A right secret from an address that is not allowed counts as a guess, as a wrong one does:
    else who holds a list of secrets learns which is good without ever being let in."""
    async with auth(tmp_path, login_burst=3, login_rate=0.01) as front:
        away = await created(front, "elsewhere", allowed_cidrs=["10.0.0.0/8"])
        other = await created(front, "other", allowed_cidrs=["10.0.0.0/8"])
        said = {}
        for client_id, secret in (("elsewhere", away), ("other", other + "x")):
            said[client_id] = [told(await login(front, client_id, secret))[0] for _ in range(5)]
        assert said["elsewhere"] == said["other"]
        assert said["other"][-1] is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_random_keys_open_nothing(front: Front) -> None:
    """Guessing, well-formed and not. No shape of a key slips through; 256 bits are not guessed."""
    seeded = random.Random(20)
    alphabet = string.printable[:95]
    answers = set()
    for i in range(150):
        size = seeded.randrange(1, 100)
        text = "".join(seeded.choice(alphabet) for _ in range(size))
        if i % 3 == 0:
            key_id = "".join(seeded.choice(string.ascii_lowercase) for _ in range(16))
            text = compose(key_id, "".join(seeded.choice(BASE62) for _ in range(43)))
        elif i % 3 == 1:
            text = "abk_" + text
        answers.add(told(await fault_of(exchanged(front, text))))
    assert len(answers) == 1, answers
    assert answers.pop()[0] is grpc.StatusCode.UNAUTHENTICATED
