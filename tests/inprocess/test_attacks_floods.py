"""Floods of what needs no credential: key sets asked for and held, API keys that are none.

Unbounded consumption (OWASP API4:2023, CWE-770). Numbers are asserted, never durations.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from anabranch.api_keys import compose
from anabranch.v1 import auth_pb2 as pb
from anabranch.v1 import model_pb2
from anabranch.v1.auth_pb2_grpc import AuthServiceStub
from services.auth import keyset as keysets
from services.auth.keyset import StoredKeySet
from services.chassis import api_key_exchange
from services.chassis.api_key_exchange import ApiKeyTokens
from services.chassis.auth_client import AuthClient
from services.chassis.errors import Fault
from services.chassis.principal import rejected
from tests.support.attackers import fault_of
from tests.support.auth import Front, auth, bearer, until
from tests.support.inprocess import cluster, model_stub


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with auth(tmp_path) as opened:
        yield opened


class Waiters:
    """Calls of GetJwks that wait for another version, and how many the service holds."""

    def __init__(self, front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stub = front.stub
        self._keyset: StoredKeySet | None = None
        fetch = StoredKeySet.fetch

        async def seen(keyset: StoredKeySet, known: str = "", wait: float = 0.0) -> object:
            self._keyset = keyset
            return await fetch(keyset, known, wait)

        monkeypatch.setattr(StoredKeySet, "fetch", seen)

    @property
    def held(self) -> int:
        """The service's own verifier, which waits there too, included."""
        return 0 if self._keyset is None else self._keyset._waiting

    async def ask(self, seconds: float = 30.0) -> pb.GetJwksResponse:
        now = await self.stub.GetJwks(pb.GetJwksRequest())
        request = pb.GetJwksRequest(known_version=now.version)
        request.wait.FromNanoseconds(int(seconds * 1e9))
        return await self.stub.GetJwks(request)

    async def hold(self, count: int) -> list[asyncio.Task[pb.GetJwksResponse]]:
        """So many that wait at the service."""
        tasks = [asyncio.create_task(self.ask()) for _ in range(count)]

        async def waiting() -> bool:
            return self.held == count + 1

        await until(waiting)
        return tasks


async def test_a_flood_of_waiting_polls_is_held_up_to_a_number(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those beyond it are answered at once with what there is, so verifiers only ask more often."""
    assert keysets._MOST_WAITING == 500
    monkeypatch.setattr(keysets, "_MOST_WAITING", 21)
    waiters = Waiters(front, monkeypatch)
    tasks = await waiters.hold(20)
    answer = await waiters.ask()
    assert answer.jwks_json
    assert waiters.held == 21
    assert not any(task.done() for task in tasks)
    await front.as_admin(front.stub.RotateSigningKey, pb.RotateSigningKeyRequest())
    for changed in await asyncio.gather(*tasks):
        assert changed.version != answer.version


async def test_a_caller_that_leaves_frees_its_place(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a flood that hangs up would keep verifiers out for good."""
    waiters = Waiters(front, monkeypatch)
    for task in await waiters.hold(10):
        task.cancel()

    async def own() -> bool:
        return waiters.held == 1

    await until(own)


@pytest.mark.parametrize(
    "wait",
    [
        Duration(seconds=31),
        Duration(seconds=30, nanos=1),
        Duration(seconds=-1),
        Duration(nanos=-1),
        Duration(seconds=2**62),
    ],
    ids=str,
)
async def test_nobody_is_kept_waiting_for_longer_than_is_said(front: Front, wait: Duration) -> None:
    """Refused, not cut: a caller that asks for an hour would think that it has one."""
    request = pb.GetJwksRequest(known_version="x", wait=wait)
    fault = await fault_of(front.stub.GetJwks(request))
    assert fault is not None
    assert [v.field for v in fault.violations] == ["wait"]


async def test_polls_that_wait_hold_up_no_shutdown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are answered when the service leaves, long before their 30 seconds."""
    async with AsyncExitStack() as stack:
        async with auth(tmp_path) as front:
            address = f"127.0.0.1:{front.port}"
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            waiters = Waiters(front, monkeypatch)
            waiters.stub = AuthServiceStub(channel)
            tasks = await waiters.hold(10)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(answer, pb.GetJwksResponse) for answer in answers), answers


class Exchange:
    """Refuses every key, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def exchange(self, api_key: str) -> str:
        self.asked.append(api_key)
        await self.gate.wait()
        raise rejected()


def key(number: int) -> str:
    return compose(f"{number:016d}", "A" * 43)


async def test_unknown_keys_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one that is made up costs one question; all together, memory for so many."""
    assert api_key_exchange._MOST_REFUSED == 10_000
    monkeypatch.setattr(api_key_exchange, "_MOST_REFUSED", 50)
    now, exchange = [0.0], Exchange()
    tokens = ApiKeyTokens(exchange, lambda: now[0])
    for number in (*range(300), 299, 298, 299):
        with pytest.raises(Fault):
            await tokens.token(key(number), str(number).encode())
    assert len(exchange.asked) == 300
    assert len(tokens._refused) == 50
    assert not tokens._under_way
    now[0] = api_key_exchange.REFUSED_FOR_S
    with pytest.raises(Fault):
        await tokens.token(key(299), b"299")
    assert len(exchange.asked) == 301, "a key may have become good by now"


async def test_malformed_keys_never_reach_the_auth_service() -> None:
    """What is no key by its own form costs nobody a question."""
    exchange = Exchange()
    tokens = ApiKeyTokens(exchange, lambda: 0.0)
    for wrong in (
        "abk_",
        key(1)[:-1],
        key(1) + "0",
        key(1)[:-6] + "000000",
        "abk_" + "\u0430" * 66,
    ):
        with pytest.raises(Fault):
            await tokens.token(wrong, wrong.encode())
    assert not exchange.asked
    assert not tokens._refused, "nor memory"


async def test_the_same_key_at_once_is_one_question_and_many_keys_wait_in_no_line() -> None:
    """A stampede with one key costs one exchange; more than 64 different ones are sent away."""
    exchange = Exchange()
    exchange.gate.clear()
    tokens = ApiKeyTokens(exchange, lambda: 0.0)
    same = [asyncio.create_task(tokens.token(key(0), b"0")) for _ in range(100)]
    others = [asyncio.create_task(tokens.token(key(i), str(i).encode())) for i in range(1, 100)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(tokens._under_way) == 64
    exchange.gate.set()
    found = await asyncio.gather(*same, *others, return_exceptions=True)
    reasons = [fault.code for fault in found if isinstance(fault, Fault)]
    assert len(reasons) == 199
    assert reasons.count(grpc.StatusCode.UNAUTHENTICATED) == 100 + 63
    assert len(exchange.asked) == 64
    assert not tokens._under_way


async def test_a_router_asks_auth_once_for_a_key_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not at all for what is no key: floods at the router are not floods at auth."""
    asked: list[str] = []
    exchange = AuthClient.exchange

    async def counted(client: AuthClient, api_key: str) -> str:
        asked.append(api_key)
        return await exchange(client, api_key)

    monkeypatch.setattr(AuthClient, "exchange", counted)
    monkeypatch.setattr(api_key_exchange, "REFUSED_FOR_S", 600.0)
    async with cluster(tmp_path) as town:
        assert town.router is not None
        async with town.channel(town.router) as channel:
            stub = model_stub(channel)
            for credential in (key(1), key(1), key(1), key(1)[:-1], "abk_", key(2)[:-6] + "000000"):
                call = stub.ListModels(model_pb2.ListModelsRequest(), metadata=bearer(credential))
                assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
    assert asked == [key(1)]
