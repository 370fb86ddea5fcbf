"""vLLM's cache events, in every form that its versions have given them, become names."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.chassis.prefix_log import PrefixLog
from services.local_engine.on_vllm.kv_events import BlockEvents, KvEventSocket
from services.local_engine.prefix_events import PrefixNames

BLOCK = 64  # of four bytes each: one name a block
PROMPT = list(range(BLOCK * 4))
NAMES = (11, 22, 33, 44)


class Scene:
    def __init__(self) -> None:
        self.names = PrefixNames(PrefixLog(), BLOCK)
        self.events = BlockEvents(self.names)
        self.names.admit(NAMES, 4 * len(PROMPT), PROMPT)
        self._number = 0

    def take(self, *events: Any) -> set[int]:
        self.events.take(self._number, events)
        self._number += 1
        return set(self.names.log.held())

    def lose_one(self) -> None:
        self._number += 1


def stored(first: int, last: int, **more: Any) -> dict[str, Any]:
    """Blocks of PROMPT as today's vLLM tells them; their hashes are their numbers, as bytes."""
    return {
        "type": "BlockStored",
        "block_hashes": [b"%d" % number for number in range(first, last)],
        "parent_block_hash": b"%d" % (first - 1) if first else None,
        "token_ids": PROMPT[first * BLOCK : last * BLOCK],
        "block_size": BLOCK,
        "lora_id": None,
        "medium": "GPU",
        "group_idx": 0,
    } | more


def removed(*numbers: int, **more: Any) -> dict[str, Any]:
    hashes = [b"%d" % number for number in numbers]
    return {"type": "BlockRemoved", "block_hashes": hashes, "medium": "GPU"} | more


def test_stored_and_removed_blocks_become_names():
    scene = Scene()
    assert scene.take(stored(0, 2)) == {11, 22}
    assert scene.take(stored(2, 4)) == {11, 22, 33, 44}
    assert scene.take(removed(3), removed(2)) == {11, 22}
    assert scene.take({"type": "AllBlocksCleared"}) == set()


def test_events_as_arrays_with_numbers_for_hashes_are_read_too():
    scene = Scene()
    old = ["BlockStored", [7, 8], None, PROMPT[: 2 * BLOCK], BLOCK, None]
    assert scene.take(old) == {11, 22}
    assert scene.take(["BlockStored", [9], 8, PROMPT[2 * BLOCK : 3 * BLOCK], BLOCK]) == {11, 22, 33}
    assert scene.take(["BlockRemoved", [9]]) == {11, 22}
    assert scene.take(["AllBlocksCleared"]) == set()


def test_a_block_computed_twice_is_held_until_both_are_gone():
    scene = Scene()
    scene.take(stored(0, 1), stored(0, 1))
    assert scene.take(removed(0)) == {11}
    assert scene.take(removed(0)) == set()
    assert scene.take(removed(0)) == set()


def test_a_block_whose_beginning_was_never_heard_of_is_passed_over():
    scene = Scene()
    assert scene.take(stored(1, 3)) == set()
    assert scene.take(removed(1, 2)) == set()


@pytest.mark.parametrize(
    "event",
    [
        stored(0, 1, medium="CPU"),
        stored(0, 1, group_idx=1),
        stored(0, 1, lora_id=3),
        stored(0, 1, extra_keys=[("salt",)]),
        stored(0, 1, token_ids=PROMPT[:32], block_size=32),
        stored(0, 2, block_hashes=[b"0"]),
        {"type": "SomethingNew", "medium": "GPU"},
    ],
)
def test_what_says_nothing_of_plain_prompts_is_passed_over(event):
    assert Scene().take(event) == set()


def test_extra_keys_that_say_nothing_are_none():
    assert Scene().take(stored(0, 2, extra_keys=[None, None])) == {11, 22}


def test_a_gap_voids_what_was_known_and_says_so(caplog):
    scene = Scene()
    scene.take(stored(0, 2))
    scene.lose_one()
    assert scene.take() == set()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert scene.take(stored(0, 1)) == {11}


@pytest.mark.parametrize("event", [7, {}, [], {"type": "BlockStored"}, ["BlockRemoved", 5]])
def test_nonsense_is_an_error_of_a_kind_that_the_socket_expects(event):
    with pytest.raises((LookupError, TypeError, ValueError)):
        Scene().take(event)


class Publisher:
    """The publishing side, as vLLM's engine core has it."""

    def __init__(self, endpoint: str) -> None:
        self._zmq = pytest.importorskip("zmq")
        self._pack = pytest.importorskip("msgspec").msgpack.encode
        self._context = self._zmq.Context()
        self._socket = self._context.socket(self._zmq.XPUB)
        self._socket.bind(endpoint)

    async def subscribed(self) -> None:
        async with asyncio.timeout(5):
            while not self._socket.poll(0):
                await asyncio.sleep(0.005)

    def send(self, number: int, events: Sequence[Any]) -> None:
        payload = self._pack([123.5, events, 0])
        self._socket.send_multipart((b"", number.to_bytes(8, "big"), payload))

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.mark.parametrize("good", [True, False])
async def test_the_socket_passes_on_what_vllm_publishes_until_it_makes_no_sense(good, caplog):
    scene = Scene()
    socket = KvEventSocket()
    publisher = Publisher(socket.endpoint)
    listening = asyncio.create_task(socket.listen(scene.events))
    try:
        await publisher.subscribed()
        publisher.send(0, [stored(0, 2)])
        async with asyncio.timeout(5):
            while set(scene.names.log.held()) != {11, 22}:
                await asyncio.sleep(0.005)
        if not good:
            publisher.send(1, [{"type": "BlockStored"}])
            await asyncio.wait_for(listening, 5)
            assert scene.names.log.held() == ()
            assert [record.levelname for record in caplog.records] == ["WARNING"]
    finally:
        listening.cancel()
        await asyncio.wait({listening})
        publisher.close()
        socket.close()


def test_a_temporary_directory_whose_name_is_too_long_is_refused_and_left_clean(
    tmp_path, monkeypatch
):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(OSError, match="too long"):
        KvEventSocket()
    assert not list(deep.iterdir())


def test_the_socket_s_directory_is_ours_alone_and_goes_with_it():
    socket = KvEventSocket()
    directory = Path(socket.endpoint.removeprefix("ipc://")).parent
    assert directory.stat().st_mode & 0o777 == 0o700
    socket.close()
    socket.close()
    assert not directory.exists()
