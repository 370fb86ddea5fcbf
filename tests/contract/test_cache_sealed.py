"""Answers in a real Redis and on disk, sealed: nobody reads them there, nor another tenant here."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest

from services.chassis.encryption.ciphers import CipherName
from services.chassis.encryption.envelope import Envelope
from services.chassis.encryption.keychain import Keychain
from services.chassis.redis_connection import open_redis
from services.router.response_cache.disk_tier import DiskTier
from services.router.response_cache.entry import Entry
from services.router.response_cache.key import AnswerKey
from services.router.response_cache.redis_tier import RedisTier
from services.router.response_cache.stored_form import SealedForm, StoredForm
from services.router.response_cache.stores import open_stores
from services.router.response_cache.tiers import Tier
from tests.support.redis import RedisServer, binary, redis_server

OLD, NEW = {"2026-05": bytes(range(32))}, {"2026-11": bytes(range(32, 64))}
KEY = AnswerKey(bytes(range(32)), "shop")
TWIN = AnswerKey(bytes(range(32)), "bank")
OTHER = AnswerKey(bytes(32), "shop")
WORDS = b"the patient is called Miriam"
ANSWER = Entry(1234.5, 3, WORDS * 3)
LONGEST = 1000
IN_REDIS = [
    pytest.mark.cluster,
    pytest.mark.skipif(binary() is None, reason="no Redis server installed"),
]


def form(keys: dict[str, bytes], current: str) -> SealedForm:
    return SealedForm(Envelope(Keychain(keys, current)))


class Place:
    """A store, seen from within, and the tiers that share it."""

    def __init__(self, new: Callable[[StoredForm | None], Tier]) -> None:
        self._new = new
        self._opened = AsyncExitStack()

    async def tier(self, of: StoredForm | None) -> Tier:
        tier = self._new(of)
        await tier.open()
        self._opened.push_async_callback(tier.close)
        return tier

    async def close(self) -> None:
        await self._opened.aclose()

    def everything(self) -> bytes:
        """All bytes that it has."""
        raise NotImplementedError

    def body(self, key: AnswerKey) -> bytes | None:
        raise NotImplementedError

    def write(self, key: AnswerKey, body: bytes) -> None:
        raise NotImplementedError


class OnDisk(Place):
    def __init__(self, folder: Path) -> None:
        super().__init__(lambda of: DiskTier(folder, 1 << 20, lambda: 1_000_000.0, of))
        self._folder = folder

    def everything(self) -> bytes:
        return b"".join(path.read_bytes() for path in sorted(self._folder.iterdir()))

    def body(self, key: AnswerKey) -> bytes | None:
        query = "SELECT body FROM answers WHERE key = ?"
        with closing(sqlite3.connect(self._folder / "answers-1.sqlite")) as own:
            row = own.execute(query, (key.digest,)).fetchone()
        return row and row[0]

    def write(self, key: AnswerKey, body: bytes) -> None:
        change = "UPDATE answers SET body = ? WHERE key = ?"
        with closing(sqlite3.connect(self._folder / "answers-1.sqlite")) as own, own:
            own.execute(change, (body, key.digest))


class InRedis(Place):
    def __init__(self, server: RedisServer, stack: AsyncExitStack) -> None:
        client = open_redis(server.url)
        stack.push_async_callback(client.aclose)
        super().__init__(lambda of: RedisTier(client, of))
        self._own = stack.enter_context(server.client())
        self._own.flushall()

    def everything(self) -> bytes:
        names = list(self._own.scan_iter())
        return b"".join(names) + b"".join(self._own.get(name) for name in names)

    def body(self, key: AnswerKey) -> bytes | None:
        return self._own.get(f"anabranch:answer:{key.digest.hex()}")

    def write(self, key: AnswerKey, body: bytes) -> None:
        self._own.set(f"anabranch:answer:{key.digest.hex()}", body)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(params=["disk", pytest.param("redis", marks=IN_REDIS)])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        opened: Place
        if request.param == "disk":
            opened = OnDisk(tmp_path / "cache")
        else:
            opened = InRedis(request.getfixturevalue("redis"), stack)
        stack.push_async_callback(opened.close)
        yield opened


async def gone(place: Place, tier: Tier) -> bool:
    """Whether the entry of KEY left, at the latest when the store next made room."""
    await tier.put(OTHER, ANSWER, 60)
    assert await tier.get(OTHER, LONGEST) == ANSWER
    return place.body(KEY) is None


@pytest.mark.parametrize(
    ("cipher", "number"), [(CipherName.AES_256_GCM, 1), (CipherName.SM4_GCM, 2)]
)
async def test_an_answer_is_found_nowhere_in_the_store_and_is_got_back(place, cipher, number):
    tier = await place.tier(form(OLD, "2026-05"))
    await tier.put(KEY._replace(cipher=cipher), ANSWER, 60)
    held = place.everything()
    assert b"Miriam" not in held
    assert b"shop" not in held
    assert await tier.get(KEY, LONGEST) == ANSWER
    assert place.body(KEY)[1] == number, "its cipher"


async def test_without_keys_it_would_be_found(place):
    tier = await place.tier(None)
    await tier.put(KEY, ANSWER, 60)
    assert WORDS in place.everything()


async def test_tenants_of_either_cipher_share_a_store(place):
    tier = await place.tier(form(OLD, "2026-05"))
    theirs = AnswerKey(OTHER.digest, "bank", CipherName.SM4_GCM)
    await tier.put(KEY, ANSWER, 60)
    await tier.put(theirs, ANSWER, 60)
    assert await tier.get(KEY, LONGEST) == await tier.get(theirs, LONGEST) == ANSWER


async def test_a_tenant_gets_no_other_ones_answer_even_under_the_same_name(place):
    tier = await place.tier(form(OLD, "2026-05"))
    await tier.put(KEY, ANSWER, 60)
    assert await tier.get(TWIN, LONGEST) is None


async def test_an_answer_moved_to_another_name_of_the_tenant_is_none(place):
    tier = await place.tier(form(OLD, "2026-05"))
    await tier.put(KEY, ANSWER, 60)
    await tier.put(OTHER, ANSWER, 60)
    place.write(OTHER, place.body(KEY))
    assert await tier.get(OTHER, LONGEST) is None


async def test_what_cannot_be_opened_is_missed_and_removed(place):
    tier = await place.tier(form(OLD, "2026-05"))
    await tier.put(KEY, ANSWER, 60)
    sealed = place.body(KEY)
    for spoiled in (sealed[:-1] + bytes([sealed[-1] ^ 1]), sealed[:40], b"\x01 garbage"):
        await tier.put(KEY, ANSWER, 60)
        place.write(KEY, spoiled)
        assert await tier.get(KEY, LONGEST) is None
        assert await gone(place, tier)


async def test_what_is_written_after_a_miss_is_not_removed(place):
    tier = await place.tier(form(OLD, "2026-05"))
    await tier.put(KEY, ANSWER, 60)
    place.write(KEY, b"garbage")
    assert await tier.get(KEY, LONGEST) is None
    await tier.put(KEY, ANSWER, 60)
    assert not await gone(place, tier)
    assert await tier.get(KEY, LONGEST) == ANSWER


async def test_what_was_stored_before_there_were_keys_is_missed_and_removed(place):
    before, after = await place.tier(None), await place.tier(form(OLD, "2026-05"))
    await before.put(KEY, ANSWER, 60)
    assert await after.get(KEY, LONGEST) is None
    assert await gone(place, after)


async def test_a_rotation_loses_no_answer_until_the_old_key_is_taken_away(place):
    before = await place.tier(form(OLD, "2026-05"))
    await before.put(KEY, ANSWER, 60)
    during = await place.tier(form(OLD | NEW, "2026-11"))
    assert await during.get(KEY, LONGEST) == ANSWER
    after = await place.tier(form(NEW, "2026-11"))
    assert await after.get(KEY, LONGEST) is None
    assert await gone(place, after)


async def test_the_longest_answer_asked_for_is_got_whatever_sealing_adds(place):
    long_id = "k" * 64
    tier = await place.tier(form({long_id: bytes(range(32))}, long_id))
    await tier.put(KEY, ANSWER, 60)
    assert await tier.get(KEY, ANSWER.size) == ANSWER
    short = await place.tier(form(OLD, "2026-05"))
    await short.put(KEY, ANSWER, 60)
    assert await short.get(KEY, ANSWER.size - 1) is None
    assert await short.get(KEY, ANSWER.size) == ANSWER, "it was not removed for being long"


@pytest.mark.parametrize(
    ("on_disk", "sealed", "warnings"),
    [(True, None, 1), (True, form(OLD, "2026-05"), 0), (False, None, 0)],
)
async def test_answers_that_are_stored_unencrypted_are_warned_of_once(
    tmp_path, caplog, on_disk, sealed, warnings
):
    directory = tmp_path if on_disk else None
    async with open_stores(
        memory_bytes=0, redis=None, directory=directory, disk_bytes=1 << 20, sealed=sealed
    ):
        pass
    said = [record for record in caplog.records if "not encrypted" in record.getMessage()]
    assert [record.levelname for record in said] == ["WARNING"] * warnings
