"""How a policy comes from a file, from other workers and from Consul: every order of events."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.chassis.errors import Fault
from services.chassis.registry import (
    Entry,
    KeyValues,
    KeyValuesUnavailable,
    check_key,
    open_key_values,
)
from services.chassis.registry.key_values import LastValue
from services.chassis.settings import SettingsError
from services.router.core.policy import Policy
from services.router.policy import board as boards
from services.router.policy.board import Board, OwnBoard, SharedBoard
from services.router.policy.consul_source import ConsulSource
from services.router.policy.local_source import LocalSource
from services.router.policy.policy_file import PolicyFile
from services.router.policy.store import PolicyStore, Source
from tests.support.waiting import until

BAD = "version: 1\nslow_start: soon\n"


def text_of(seconds: int) -> str:
    return f"version: 1\nslow_start: {seconds}s # {seconds}\n"


class Router:
    """One process: its store and its source. `has` is the slow start of the policy in force."""

    def __init__(self, source: Any, store: PolicyStore) -> None:
        self.store, self.source = store, source

    @property
    def has(self) -> float:
        return self.store.current().slow_start

    async def write(self, text: str, expected: str = "") -> None:
        await self.source.write(self.store.read(text), expected)

    async def until(self, seconds: float) -> None:
        async def so() -> bool:
            return self.has == seconds

        await until(so)

    async def refuses(self) -> None:
        async def so() -> bool:
            return self.store.rejected is not None

        await until(so)


def local(path: Path | None, board: Board | None = None) -> Router:
    store = PolicyStore(Policy(), epoch_clock=lambda: 0.0)
    return Router(LocalSource(store, board or OwnBoard(), path), store)


def put(path: Path, text: str) -> None:
    """Another file at the path, at once."""
    new = path.with_name("new")
    new.write_text(text, encoding="utf-8")
    new.rename(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "policy.yaml"
    found.write_text(text_of(1))
    return found


# The store


def test_subscribers_hear_of_each_change_when_it_is_in_force():
    store = PolicyStore(Policy())
    heard: list[tuple[float, bool]] = []
    store.subscribe(lambda policy: heard.append((policy.slow_start, policy is store.current())))
    store.apply(text_of(1), Source.ADMIN, "a test")
    store.apply(text_of(1) + "# again", Source.FILE, "a test")
    with pytest.raises(Exception, match="slow_start"):
        store.apply(BAD, Source.FILE, "a test")
    store.apply(text_of(2), Source.ADMIN, "a test")
    assert heard == [(1.0, True), (2.0, True)]


def test_the_policy_in_force_stays_the_same_object_while_it_says_the_same():
    store = PolicyStore(Policy())
    before = store.current()
    store.apply("version: 1\nslow_start: 10000ms", Source.FILE, "a test")
    assert store.current() is before
    assert store.source is Source.FILE


# A file


async def test_a_file_written_in_place_is_taken_only_when_it_rests(path: Path):
    router = local(path)
    await router.source.start()
    # A half-written document may be a good one: it must not come into force.
    with path.open("w") as writing:
        writing.write("version: 1\n")
        writing.flush()
        await router.source.look()
        writing.write("slow_start: 2s\n")
        writing.flush()
        await router.source.look()
    assert router.has == 1.0
    await router.source.look()
    assert router.has == 2.0


async def test_what_an_operator_wrote_outlives_looks_at_the_same_file(path: Path):
    router = local(path)
    await router.source.start()
    await router.write(text_of(2))
    for _ in range(3):
        os.utime(path)
        await router.source.look()
        assert router.has == 2.0
    put(path, text_of(3))
    await router.source.look()
    assert (router.has, router.store.source) == (3.0, Source.FILE)


async def test_what_an_operator_wrote_in_view_of_a_bad_file_outlives_it(path: Path):
    router = local(path)
    await router.source.start()
    put(path, BAD)
    await router.source.look()
    assert router.store.rejected is not None
    await router.write(text_of(2))
    for _ in range(3):
        await router.source.look()
    assert (router.has, router.store.rejected) == (2.0, None)


async def test_a_bad_file_is_refused_once_and_not_at_every_look(path: Path):
    router = local(path)
    await router.source.start()
    refusals: list[str] = []
    real = router.store.refuse
    router.store.refuse = lambda *told: (refusals.append(told[0]), real(*told))[1]  # type: ignore
    put(path, BAD)
    for _ in range(3):
        await router.source.look()
    assert refusals == [f"file {path}"]


async def test_looking_at_what_is_no_file_leaves_nothing_open(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "nothing"):
        for _ in range(5):
            held = PolicyFile(path).look()
            assert held is not None
            assert held.objection
    assert len(os.listdir("/proc/self/fd")) == before


# Workers of one router


class Supervisor:
    """What a supervisor does with what workers share, message by message."""

    def __init__(self) -> None:
        self.value: dict[str, Any] | None = None
        self.revision = 0
        self.workers: list[Worker] = []
        self.held_back: list[tuple[dict[str, Any], int | None]] = []
        self.holds_back = False

    def share(self, value: dict[str, Any], after: int | None) -> None:
        if self.holds_back:
            self.held_back.append((value, after))
            return
        if after not in (None, self.revision):
            return
        self.value, self.revision = value, self.revision + 1
        for worker in self.workers:
            worker.hear(value, self.revision)

    async def holds(self, count: int) -> None:
        async def so() -> bool:
            return len(self.held_back) == count

        await until(so)

    def release(self) -> None:
        self.holds_back = False
        for value, after in self.held_back:
            self.share(value, after)

    def board(self) -> SharedBoard:
        """The board of another worker."""
        worker = Worker(self)
        board = SharedBoard(worker)  # type: ignore[arg-type]
        self.workers.append(worker)
        if self.value is not None:
            worker.hear(self.value, self.revision)
        return board


class Worker:
    """A worker's side."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._revision = 0
        self._handlers: list[Any] = []

    def on_shared(self, handler: Any) -> None:
        self._handlers.append(handler)

    def share(self, key: str, value: dict[str, Any], *, after: int | None = None) -> None:
        assert key == "policy"
        # As on the line, which knows JSON alone.
        self._supervisor.share(dict(value), after)

    def revision(self, key: str) -> int:
        return self._revision

    def hear(self, value: dict[str, Any], revision: int) -> None:
        self._revision = revision
        for handler in self._handlers:
            handler("drained/x", True)
            handler("policy", value)


async def started(path: Path | None, *boards: SharedBoard) -> list[Router]:
    routers = [local(path, board) for board in boards]
    for router in routers:
        await router.source.start()
    return routers


async def look(*routers: Router) -> None:
    for router in routers:
        await router.source.look()


async def test_whoever_sees_the_file_change_tells_the_other_workers(path: Path):
    supervisor = Supervisor()
    one, other = await started(path, supervisor.board(), supervisor.board())
    put(path, text_of(2))
    await look(one, other)
    assert (one.has, other.has) == (2.0, 2.0)
    # One posting for the start and one for the change, whoever made them.
    assert supervisor.revision == 2


async def test_an_update_reaches_every_worker_and_those_that_start_later(path: Path):
    supervisor = Supervisor()
    one, other = await started(path, supervisor.board(), supervisor.board())
    await one.write(text_of(2))
    await look(other)
    (late,) = await started(path, supervisor.board())
    assert [router.has for router in (one, other, late)] == [2.0] * 3
    put(path, text_of(3))
    await look(late, one, other)
    assert [router.has for router in (one, other, late)] == [3.0] * 3
    assert {router.store.source for router in (one, other, late)} == {Source.FILE}


async def test_a_worker_that_starts_beside_a_bad_file_takes_what_the_others_have(path: Path):
    supervisor = Supervisor()
    (one,) = await started(path, supervisor.board())
    put(path, BAD)
    await look(one)
    (late,) = await started(path, supervisor.board())
    assert late.has == 1.0
    await look(late)
    assert late.store.rejected is not None
    put(path, text_of(4))
    await look(late, one)
    assert (one.has, late.has) == (4.0, 4.0)


async def test_a_file_that_changed_while_a_worker_started_wins_over_what_was_posted(path: Path):
    supervisor = Supervisor()
    (one,) = await started(path, supervisor.board())
    await one.write(text_of(2))
    put(path, text_of(3))
    (late,) = await started(path, supervisor.board())
    await look(one)
    assert (one.has, late.has) == (3.0, 3.0)


async def test_of_two_updates_that_expect_the_same_version_one_wins_everywhere():
    supervisor = Supervisor()
    one, other = await started(None, supervisor.board(), supervisor.board())
    expected = one.store.current().version
    supervisor.holds_back = True
    first = asyncio.create_task(one.write(text_of(2), expected))
    second = asyncio.create_task(other.write(text_of(3), expected))
    await supervisor.holds(2)
    supervisor.release()
    await first
    with pytest.raises(Fault, match="the policy in force has the version") as late:
        await second
    assert late.value.metadata["version"] == one.store.current().version
    assert (one.has, other.has) == (2.0, 2.0)


async def test_of_two_updates_of_whatever_is_in_force_the_later_one_stays():
    supervisor = Supervisor()
    one, other = await started(None, supervisor.board(), supervisor.board())
    supervisor.holds_back = True
    writes = [asyncio.create_task(r.write(text_of(n))) for n, r in ((2, one), (3, other))]
    await supervisor.holds(2)
    supervisor.release()
    await asyncio.gather(*writes)
    await look(one, other)
    assert (one.has, other.has) == (3.0, 3.0)


async def test_a_supervisor_that_does_not_answer_makes_an_update_uncertain(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(boards, "HEARD_WITHIN_S", 0.01)
    supervisor = Supervisor()
    (one,) = await started(None, supervisor.board())
    supervisor.holds_back = True
    with pytest.raises(Fault, match="may be repeated"):
        await one.write(text_of(2))
    # It takes effect when the supervisor gets to it, and for everybody.
    supervisor.release()
    await look(one)
    assert one.has == 2.0


async def test_an_update_is_followed_as_soon_as_it_is_posted():
    supervisor = Supervisor()
    one, other = await started(None, supervisor.board(), supervisor.board())
    following = asyncio.create_task(other.source.follow())
    for seconds in (2, 3, 4):
        await one.write(text_of(seconds))
        await other.until(seconds)
    following.cancel()


# Consul


class Flaky:
    """Keys and values in memory, which a test can take away and overtake."""

    def __init__(self, real: KeyValues) -> None:
        self.real = real
        self.down = False
        self.overtaken_by: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    async def get(self, key: str) -> Entry:
        if self.down:
            raise KeyValuesUnavailable("down")
        return await self.real.get(key)

    async def put(self, key: str, value: bytes, index: int) -> bool:
        if self.overtaken_by:
            now = await self.real.get(key)
            assert await self.real.put(key, self.overtaken_by.pop(0).encode(), now.index)
        return await self.real.put(key, value, index)


@pytest.fixture
async def shelf() -> AsyncIterator[Flaky]:
    key_values = open_key_values(f"memory:{uuid.uuid4()}")
    yield Flaky(key_values)
    await key_values.close()


async def written(shelf: Flaky, text: str) -> None:
    entry = await shelf.real.get("key")
    assert await shelf.real.put("key", text.encode(), entry.index)


def consul(shelf: Flaky, board: Board | None = None) -> Router:
    store = PolicyStore(Policy())
    return Router(ConsulSource(store, board or OwnBoard(), shelf, "key"), store)


@pytest.fixture
async def follower(shelf: Flaky) -> AsyncIterator[Router]:
    router = consul(shelf)
    await router.source.start()
    following = asyncio.create_task(router.source.follow())
    yield router
    following.cancel()


async def test_without_a_value_the_defaults_hold_until_there_is_one(follower, shelf):
    assert (follower.has, follower.store.source) == (10.0, Source.DEFAULT)
    await written(shelf, text_of(2))
    await follower.until(2.0)
    assert follower.store.source is Source.CONSUL
    assert follower.store.text == text_of(2)


async def test_a_bad_value_changes_nothing_and_is_told(follower, shelf):
    await written(shelf, text_of(2))
    await follower.until(2.0)
    await written(shelf, BAD)
    await follower.refuses()
    assert follower.has == 2.0
    assert "slow_start: must" in follower.store.rejected.problems[0]
    await written(shelf, text_of(3))
    await follower.until(3.0)
    assert follower.store.rejected is None


async def test_a_router_does_not_start_with_a_bad_value(shelf):
    await written(shelf, BAD)
    with pytest.raises(SettingsError, match="Consul's key key: slow_start: must"):
        await consul(shelf).source.start()


async def test_an_update_is_written_for_all_routers(follower, shelf):
    other = consul(shelf)
    await other.source.start()
    following = asyncio.create_task(other.source.follow())
    await follower.write(text_of(2), follower.store.current().version)
    assert follower.has == 2.0
    await other.until(2.0)
    assert (await shelf.real.get("key")).value == text_of(2).encode()
    following.cancel()


async def test_an_update_that_is_overtaken_is_refused_if_it_expected_something(follower, shelf):
    shelf.overtaken_by = [text_of(3)]
    with pytest.raises(Fault, match="the policy in force has the version"):
        await follower.write(text_of(2), follower.store.current().version)
    await follower.until(3.0)
    # One that does not expect anything comes last.
    shelf.overtaken_by = [text_of(4)]
    await follower.write(text_of(5))
    assert follower.has == 5.0


async def test_an_update_expects_the_last_good_version_where_a_bad_value_is_written(
    follower, shelf
):
    await follower.write(text_of(2))
    await written(shelf, BAD)
    await follower.refuses()
    shown = follower.store.current().version
    with pytest.raises(Fault, match="has the version"):
        await follower.write(text_of(3), "another")
    await follower.write(text_of(3), shown)
    assert follower.store.rejected is None


async def test_an_update_while_consul_is_away_is_refused_and_changes_nothing(follower, shelf):
    shelf.down = True
    with pytest.raises(Fault, match="Consul does not take the policy") as refused:
        await follower.write(text_of(2))
    assert refused.value.retry_after
    assert follower.has == 10.0


async def test_a_worker_that_starts_without_consul_takes_what_the_others_have(shelf):
    supervisor = Supervisor()
    one = consul(shelf, supervisor.board())
    await written(shelf, text_of(2))
    await one.source.start()
    await written(shelf, BAD)
    late = consul(shelf, supervisor.board())
    await late.source.start()
    assert late.has == 2.0


async def test_a_value_that_an_outage_took_is_not_missed_by_a_worker_that_never_saw_it(shelf):
    supervisor = Supervisor()
    one = consul(shelf, supervisor.board())
    await written(shelf, text_of(2))
    await one.source.start()
    shelf.real._shared.entries.clear()
    late = consul(shelf, supervisor.board())
    await late.source.start()
    following = asyncio.create_task(late.source.follow())
    for _ in range(20):
        await asyncio.sleep(0)
    assert late.has == 2.0
    await written(shelf, text_of(3))
    await late.until(3.0)
    # From now on it has seen for itself what is there, and what is not.
    shelf.real._shared.write("key", None)
    await late.until(10.0)
    following.cancel()


# What is believed of a store of keys and values


def test_a_missing_value_is_believed_of_a_store_in_good_health_alone():
    held, gone = Entry(b"x", 7), Entry()
    known = LastValue()
    assert known.answered(gone, memory_lost=False) == gone
    assert known.answered(held, memory_lost=False) == held
    assert known.answered(held, memory_lost=False) is None
    assert known.answered(gone, memory_lost=False) == gone
    # After an outage, or a memory lost, it may be gone by accident: as often as it is said.
    for trouble in ("outage", "memory"):
        held = dataclasses.replace(held, index=held.index + 1)
        assert known.answered(held, memory_lost=False) == held
        if trouble == "outage":
            known.failed()
        for _ in range(3):
            assert known.answered(gone, memory_lost=trouble == "memory") is None
            assert known.is_kept
        again = dataclasses.replace(held, index=held.index + 1)
        assert known.answered(again, memory_lost=False) == again
        assert not known.is_kept
        assert known.answered(gone, memory_lost=False) == gone
    # What was never there is not missed.
    fresh = LastValue()
    fresh.failed()
    assert fresh.answered(gone, memory_lost=False) == gone


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "a b", "a/../b", ".", "ü", "x" * 513])
def test_a_key_that_is_none_is_refused(key: str):
    with pytest.raises(ValueError, match="a key is made of"):
        check_key(key)
    check_key("anabranch/router.policy_v1-x")


def test_registries_without_keys_and_values_say_so():
    with pytest.raises(ValueError, match="holds keys and values"):
        open_key_values("static:a=b:1")
