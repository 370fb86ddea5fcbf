"""The blocking client: the same surface, over a loop of its own in a thread."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from anabranch import (
    AsyncClient,
    Client,
    OverloadedError,
)
from tests.support.session_server import server_process, words
from tests.support.waiting import BOUND_S

# The blocking client runs its own loop, so its server lives in a process of its own.


@pytest.fixture(scope="module")
def remote() -> Iterator[str]:
    with server_process() as (address, _):
        yield address


def test_the_blocking_client_has_the_same_surface(remote: str) -> None:
    with Client(remote) as client:
        assert client.generate(model="m", prompt="say 5").text == words(5)
        with client.stream(model="m", prompt="say 9") as stream:
            assert len(list(stream)) == 10
        assert stream.text == words(9)
        assert len(client.models()) == 5
        assert client.count_tokens(model="m", prompt="a b").prompt_tokens == 2
        assert client.embed("m", "abc").vectors == ((3.0, 1.0),)
        assert [b.backend_id for b in client.backends()] == ["engine-1"]
        assert client.drain("engine-1").drained
        assert not client.undrain("engine-1").drained
        assert client.explain(model="m", prompt="x").backend_id == "engine-1"
        with pytest.raises(OverloadedError):
            client.generate(model="m", prompt="refuse OVERLOADED")
    public = {n for n in dir(AsyncClient) if not n.startswith("_")}
    assert public - {"open", "prepare"} <= {n for n in dir(Client) if not n.startswith("_")}


def test_the_blocking_client_serves_threads_at_once_and_ends_its_loop(remote: str) -> None:
    results: dict[int, str] = {}
    with Client(remote) as one, Client(remote) as two:

        def ask(number: int) -> None:
            client = one if number % 2 else two
            with client.stream(model="m", prompt=f"say {number}") as stream:
                for _ in stream:
                    pass
            results[number] = stream.text

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND_S)
    assert results == {n: words(n) for n in range(16)}
    assert not [t for t in threading.enumerate() if t.name == "anabranch-loop"]
    with pytest.raises(RuntimeError, match="closed"):
        one.models()


def test_leaving_a_blocking_stream_early_is_clean(remote: str) -> None:
    with Client(remote) as client:
        with client.stream(model="m", prompt="say 100000") as stream:
            next(iter(stream))
        assert client.generate(model="m", prompt="say 2").text == words(2)


async def test_the_blocking_client_refuses_to_block_an_event_loop(remote: str) -> None:
    client = Client(remote)
    with pytest.raises(RuntimeError, match="AsyncClient"):
        client.models()
    await asyncio.to_thread(client.close)


@pytest.mark.parametrize("how", ["Client", "AsyncClient"])
def test_a_program_ends_without_warnings(remote: str, how: str) -> None:
    sync = f"""
from anabranch import Client
with Client({remote!r}) as client:
    print(client.generate(model="m", prompt="say 3").text)
    with client.stream(model="m", prompt="say 100000") as s:
        next(iter(s))
"""
    asynchronous = f"""
import asyncio
from anabranch import AsyncClient
async def main():
    # In its debug mode asyncio also warns of what a busy machine makes slow.
    asyncio.get_running_loop().slow_callback_duration = float("inf")
    async with AsyncClient({remote!r}) as client:
        print((await client.generate(model="m", prompt="say 3")).text)
        async with client.stream(model="m", prompt="say 100000") as s:
            await anext(aiter(s))
asyncio.run(main(), debug=True)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", sync if how == "Client" else asynchronous],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, words(3).strip(), "")
