"""What every store of kept answers must do: one suite over memory, a real Redis and SQLite."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from services.chassis.encryption.envelope import Envelope
from services.chassis.encryption.keychain import Keychain
from services.chassis.redis_connection import open_redis
from services.chassis.settings import Secret
from services.router.response_cache.disk_tier import DiskTier
from services.router.response_cache.entry import Entry, pack
from services.router.response_cache.key import AnswerKey
from services.router.response_cache.memory import MemoryTier
from services.router.response_cache.redis_tier import RedisTier
from services.router.response_cache.stored_form import SealedForm
from services.router.response_cache.tiers import Tier, TierFailed
from tests.support.redis import RedisServer, binary, redis_server

KEY = AnswerKey(bytes(range(32)), "shop")
OTHER = AnswerKey(bytes(32), "shop")
ANSWER = Entry(1234.5, 3, b"an answer, \x00\xff")
LONGEST = 1000


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class InMemory:
    """Memory as the slower ones are asked."""

    def __init__(self) -> None:
        self._memory = MemoryTier(1 << 20)

    async def get(self, key: AnswerKey, longest: int) -> Entry | None:
        entry = self._memory.get(key)
        return entry if entry is not None and entry.size <= longest else None

    async def put(self, key: AnswerKey, entry: Entry, ttl: float) -> None:
        self._memory.put(key, entry)


IN_REDIS = [
    pytest.mark.cluster,
    pytest.mark.skipif(binary() is None, reason="no Redis server installed"),
]
SEALED = SealedForm(Envelope(Keychain({"k": bytes(range(32))}, "k")))


@pytest.fixture(
    params=[
        "memory",
        "disk",
        "sealed-disk",
        pytest.param("redis", marks=IN_REDIS),
        pytest.param("sealed-redis", marks=IN_REDIS),
    ]
)
async def tier(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock
) -> AsyncIterator[Tier | InMemory]:
    form = SEALED if request.param.startswith("sealed") else None
    if request.param == "memory":
        yield InMemory()
    elif request.param.endswith("disk"):
        disk = DiskTier(tmp_path / "cache", 1 << 20, clock, form)
        await disk.open()
        yield disk
        await disk.close()
    else:
        server: RedisServer = request.getfixturevalue("redis")
        with server.client() as own:
            own.flushall()
        client = open_redis(server.url)
        shared = RedisTier(client, form)
        await shared.open()
        yield shared
        await shared.close()
        await client.aclose()


# All of them


async def test_what_was_put_is_got_and_nothing_else(tier):
    await tier.put(KEY, ANSWER, 60)
    assert await tier.get(KEY, LONGEST) == ANSWER
    assert await tier.get(OTHER, LONGEST) is None


async def test_a_later_answer_replaces_an_earlier_one(tier):
    await tier.put(KEY, ANSWER, 60)
    later = Entry(2000.0, 1, b"another")
    await tier.put(KEY, later, 60)
    assert await tier.get(KEY, LONGEST) == later


async def test_an_answer_longer_than_asked_for_is_none(tier):
    await tier.put(KEY, ANSWER, 60)
    assert await tier.get(KEY, ANSWER.size - 1) is None
    assert await tier.get(KEY, ANSWER.size) == ANSWER


async def test_a_large_answer_is_one(tier):
    large = Entry(1.0, 9000, bytes(range(256)) * 800)
    await tier.put(KEY, large, 60)
    assert await tier.get(KEY, large.size) == large


async def test_an_empty_answer_is_one(tier):
    empty = Entry(1.0, 0, b"")
    await tier.put(KEY, empty, 60)
    assert await tier.get(KEY, LONGEST) == empty


# On disk


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def file_of(directory: Path) -> Path:
    return directory / "answers-1.sqlite"


def answer(size: int) -> Entry:
    return Entry(1.0, 1, bytes(size))


def key(number: int) -> AnswerKey:
    return AnswerKey(number.to_bytes(32), "shop")


@pytest.fixture
async def on_disk(directory: Path, clock: Clock) -> AsyncIterator[Callable[[int], DiskTier]]:
    opened: list[DiskTier] = []

    def new(limit: int = 1 << 20) -> DiskTier:
        opened.append(DiskTier(directory, limit, clock))
        return opened[-1]

    yield new
    for disk in opened:
        await disk.close()


async def test_a_restart_forgets_nothing(on_disk):
    before = on_disk()
    await before.open()
    await before.put(KEY, ANSWER, 60)
    await before.close()
    after = on_disk()
    await after.open()
    assert await after.get(KEY, LONGEST) == ANSWER
    assert after.held == before.held > 0


async def test_several_workers_share_one_file(on_disk):
    one, other = on_disk(), on_disk()
    await one.open()
    await other.open()
    await one.put(KEY, ANSWER, 60)
    await other.put(OTHER, ANSWER, 60)
    assert await other.get(KEY, LONGEST) == ANSWER
    assert await one.get(OTHER, LONGEST) == ANSWER
    assert other.held == 2 * one.held


async def test_the_least_recently_used_answers_leave_first_and_the_bound_is_kept(on_disk, clock):
    limit = 200_000
    disk = on_disk(limit)
    await disk.open()
    for number in range(300):
        clock.now += 1
        await disk.put(key(number), answer(1000), 1e6)
        assert await disk.get(key(0), LONGEST) is not None, "it is used all the time"
        assert disk.held <= limit
    assert await disk.get(key(1), LONGEST) is None
    assert await disk.get(key(299), LONGEST) is not None
    # Nor does the file itself grow far beyond what is in it.
    await disk.close()
    assert file_of(disk_directory(disk)).stat().st_size < 2 * limit


def disk_directory(disk: DiskTier) -> Path:
    return disk._file.path.parent


async def test_an_answer_larger_than_the_disk_displaces_nothing(on_disk):
    disk = on_disk(2000)
    await disk.open()
    await disk.put(KEY, ANSWER, 60)
    await disk.put(OTHER, answer(5000), 60)
    assert await disk.get(KEY, LONGEST) == ANSWER
    assert await disk.get(OTHER, 10_000) is None


async def test_a_smaller_bound_holds_from_the_next_start(on_disk):
    disk = on_disk()
    await disk.open()
    for number in range(100):
        await disk.put(key(number), answer(1000), 60)
    await disk.close()
    smaller = on_disk(20_000)
    await smaller.open()
    assert 0 < smaller.held <= 20_000


async def test_what_is_out_of_date_makes_room(on_disk, clock):
    disk = on_disk()
    await disk.open()
    await disk.put(KEY, ANSWER, 60)
    held = disk.held
    clock.now += 61
    await disk.put(OTHER, ANSWER, 60)
    assert disk.held == held


async def test_only_its_owner_reads_the_file(on_disk, directory):
    disk = on_disk()
    await disk.open()
    await disk.put(KEY, ANSWER, 60)
    assert directory.stat().st_mode & 0o777 == 0o700
    for path in directory.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


async def test_a_file_that_is_no_database_is_moved_aside(on_disk, directory):
    directory.mkdir()
    file_of(directory).write_bytes(b"not a database" * 1000)
    disk = on_disk()
    await disk.open()
    assert await disk.get(KEY, LONGEST) is None
    await disk.put(KEY, ANSWER, 60)
    assert await disk.get(KEY, LONGEST) == ANSWER
    aside = file_of(directory).with_suffix(".unreadable")
    assert aside.read_bytes().startswith(b"not a database")


async def test_a_file_that_breaks_while_in_use_is_moved_aside(on_disk, directory):
    disk = on_disk()
    await disk.open()
    for number in range(200):
        await disk.put(key(number), answer(1000), 60)
    assert disk._writing is not None
    await disk._writing.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
    with file_of(directory).open("r+b") as file:
        file.seek(8192)
        file.write(b"\xaa" * (file_of(directory).stat().st_size - 8192))

    with pytest.raises(TierFailed) as failed:
        for number in range(200):
            assert await disk.get(key(number), LONGEST) is None, "damaged, and no answer"
    assert failed.value.useless
    await disk.open()
    await disk.put(KEY, ANSWER, 60)
    assert await disk.get(KEY, LONGEST) == ANSWER
    assert file_of(directory).with_suffix(".unreadable").exists()


async def test_two_workers_that_find_it_broken_move_it_once(on_disk, directory):
    directory.mkdir()
    file_of(directory).write_bytes(b"not a database" * 1000)
    one, other = on_disk(), on_disk()
    one._file.prepare()
    other._file.prepare()
    await one._file.set_aside()
    await one.open()
    await one.put(KEY, ANSWER, 60)
    await other._file.set_aside()
    await other.open()
    assert await other.get(KEY, LONGEST) == ANSWER


async def test_a_body_that_changed_on_disk_is_no_answer(on_disk):
    disk = on_disk()
    await disk.open()
    await disk.put(KEY, ANSWER, 60)
    assert disk._writing is not None
    changed = pack(KEY.digest, ANSWER)[:-1] + b"!"
    await disk._writing.execute("UPDATE answers SET body = ?", (changed,))
    held = disk.held
    assert await disk.get(KEY, LONGEST) is None
    await disk.put(OTHER, ANSWER, 60)
    assert disk.held == held, "it made room"
    assert await disk.get(OTHER, LONGEST) == ANSWER


async def test_a_place_that_cannot_be_written_is_said_and_tried_again(on_disk, directory):
    directory.write_text("a file where the folder should be")
    disk = on_disk()
    with pytest.raises(TierFailed):
        await disk.open()
    with pytest.raises(TierFailed):
        await disk.get(KEY, LONGEST)
    directory.unlink()
    await disk.open()
    assert await disk.get(KEY, LONGEST) is None


# In Redis


def needs_redis(test):
    missing = pytest.mark.skipif(binary() is None, reason="no Redis server installed")
    return pytest.mark.cluster(missing(test))


@pytest.fixture
async def shared(redis: RedisServer) -> AsyncIterator[RedisTier]:
    client = open_redis(redis.url)
    yield RedisTier(client)
    await client.aclose()


@needs_redis
async def test_redis_forgets_it_when_its_time_is_over(shared, redis):
    await shared.put(KEY, ANSWER, 59.5)
    with redis.client() as own:
        assert 0 < own.ttl(name(KEY)) <= 60


@needs_redis
async def test_an_answer_under_another_ones_name_is_none(shared, redis):
    await shared.put(KEY, ANSWER, 60)
    with redis.client() as own:
        own.rename(name(KEY), name(OTHER))
    assert await shared.get(OTHER, LONGEST) is None


@needs_redis
async def test_garbage_is_no_answer_and_another_type_a_failure(shared, redis):
    with redis.client() as own:
        own.set(name(KEY), b"garbage")
        assert await shared.get(KEY, LONGEST) is None
        assert not own.exists(name(KEY)), "it is removed"
        own.lpush(name(KEY), b"a list")
    with pytest.raises(TierFailed):
        await shared.get(KEY, LONGEST)


@needs_redis
async def test_a_server_that_is_gone_is_a_failure():
    with redis_server() as gone:
        gone.kill()
        client = open_redis(gone.url)
        with pytest.raises(TierFailed):
            await RedisTier(client).get(KEY, LONGEST)
        await client.aclose()


@needs_redis
async def test_a_wrong_password_is_a_failure(redis):
    client = open_redis(Secret(f"redis://:wrong@127.0.0.1:{redis.port}/0"))
    with pytest.raises(TierFailed):
        await RedisTier(client).open()
    await client.aclose()


def name(key: AnswerKey) -> str:
    return f"anabranch:answer:{key.digest.hex()}"


def test_a_url_that_is_none_is_refused_without_being_quoted():
    with pytest.raises(ValueError, match="is not a Redis URL") as refused:
        open_redis(Secret("http://:secret@somewhere"))
    assert "secret" not in str(refused.value)
