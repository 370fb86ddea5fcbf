"""The client against a real server that speaks the Session contract over a real socket."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Callable

import grpc
import pytest

from anabranch import (
    AsyncClient,
    AuthenticationError,
    BackendLostError,
    DeadlineExceededError,
    FinishReason,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    RequestCancelledError,
    SlowReaderError,
    Tier,
    UnavailableError,
    Work,
    build_request,
)
from tests.support.session_server import Script, scripted_server, server_process, words
from tests.support.waiting import BOUND_S
from tools.cluster.ports import free_port


@pytest.fixture
async def script() -> Script:
    return Script()


@pytest.fixture
async def target(script: Script) -> AsyncIterator[str]:
    async with scripted_server(script) as address:
        yield address


@pytest.fixture
async def client(target: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(target) as client:
        yield client


async def until(condition: Callable[[], object], bound: float = BOUND_S) -> None:
    async with asyncio.timeout(bound):
        while not condition():
            await asyncio.sleep(0.005)


async def test_an_answer_arrives_whole(client: AsyncClient) -> None:
    answer = await client.generate(model="m", prompt="say 5", request_id="mine")
    assert answer.text == words(5)
    assert answer.choices[0].token_ids == (0, 1, 2, 3, 4)
    assert answer.finish_reason is FinishReason.STOP
    assert answer.usage is not None
    assert answer.usage.total_tokens == 8
    assert answer.receipt is not None
    assert (answer.receipt.tier, answer.receipt.ttft) == (Tier.LOCAL, 0.005)
    assert answer.request_id == "mine"


async def test_chunks_arrive_in_order_and_add_up(client: AsyncClient) -> None:
    async with client.stream(model="m", prompt="say 20") as stream:
        positions = [chunk.first_token async for chunk in stream]
    assert positions == list(range(21))
    assert stream.text == words(20)
    assert stream.finish_reason is FinishReason.STOP
    assert stream.usage is not None
    assert stream.receipt is not None


async def test_iteration_resumes_after_a_break_without_losing_chunks(client: AsyncClient) -> None:
    async with client.stream(model="m", prompt="say 20") as stream:
        async for _ in stream:
            break
        rest = [chunk async for chunk in stream]
    assert len(rest) == 20
    assert stream.text == words(20)


async def test_many_requests_share_one_session(client: AsyncClient, script: Script) -> None:
    answers = await asyncio.gather(
        *(client.generate(model="m", prompt=f"say {n}") for n in range(200))
    )
    assert [answer.text for answer in answers] == [words(n) for n in range(200)]
    assert script.sessions == 1
    assert script.messages_in < 20, "starts that were pending together travel together"


async def test_an_error_frame_ends_only_its_own_request(client: AsyncClient) -> None:
    fine, refused = await asyncio.gather(
        client.generate(model="m", prompt="say 50"),
        client.generate(model="m", prompt="refuse OVERLOADED"),
        return_exceptions=True,
    )
    assert getattr(fine, "text", "") == words(50)
    assert isinstance(refused, OverloadedError)
    assert refused.may_retry


async def test_leaving_early_cancels_at_the_service(client: AsyncClient, script: Script) -> None:
    async with client.stream(model="m", prompt="say 100000") as stream:
        async for _ in stream:
            break
    await until(lambda: script.cancels)
    assert (await client.generate(model="m", prompt="say 1")).text == words(1)


async def test_cancelling_the_task_cancels_at_the_service(
    client: AsyncClient, script: Script
) -> None:
    task = asyncio.create_task(client.generate(model="m", prompt="silent"))
    await until(lambda: script.starts)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: script.cancels)


async def test_a_request_given_up_before_it_was_sent_is_never_sent(
    client: AsyncClient, script: Script
) -> None:
    async with client.stream(model="m", prompt="silent"):
        pass
    await client.generate(model="m", prompt="say 1")
    assert [s.prompt for s in script.starts] == ["say 1"]
    assert script.cancels == []


async def test_a_lost_session_is_invisible_to_requests_without_output(
    client: AsyncClient, script: Script
) -> None:
    answer = await client.generate(model="m", prompt="die 0")
    assert answer.text == ""
    assert answer.finish_reason is FinishReason.STOP
    assert script.sessions == 2
    first, second = script.starts
    assert first.request_id == second.request_id, "a repeat is recognisable as one"


async def test_a_lost_session_fails_requests_with_output_and_says_how_much_came(
    client: AsyncClient,
) -> None:
    with pytest.raises(BackendLostError) as caught:
        await client.generate(model="m", prompt="die 7")
    assert caught.value.work is Work.OUTPUT_SEEN
    assert caught.value.tokens_delivered == 7
    assert not caught.value.may_retry
    assert caught.value.partial is not None
    assert caught.value.partial.text == words(7)


async def test_go_away_moves_new_requests_and_finishes_old_ones(
    client: AsyncClient, script: Script
) -> None:
    script.pace = 0.002
    async with client.stream(model="m", prompt="say 300") as old:
        await anext(aiter(old))
        (conversation,) = script.live
        conversation.go_away = True
        conversation.changed.set()
        await until(lambda: client._link._current is None)
        assert (await client.generate(model="m", prompt="say 3")).text == words(3)
        assert script.sessions == 2
        async for _ in old:
            pass
    assert old.text == words(300)
    await until(lambda: conversation not in script.live)
    assert len(script.live) == 1, "the finished session hung up, the new one stays"


async def test_a_start_that_crosses_go_away_is_repeated_elsewhere(
    client: AsyncClient, script: Script
) -> None:
    answer = await client.generate(model="m", prompt="refuse DRAINING")
    assert answer.finish_reason is FinishReason.STOP
    assert script.sessions == 2


async def test_refused_sessions_are_tried_again_with_growing_delays(
    client: AsyncClient, script: Script
) -> None:
    script.refuse_sessions = 3
    assert (await client.generate(model="m", prompt="say 2")).text == words(2)
    assert script.sessions == 4


@pytest.mark.slow
async def test_an_unreachable_service_is_named_soon() -> None:
    async with AsyncClient("127.0.0.1:1") as client, asyncio.timeout(BOUND_S):
        with pytest.raises(UnavailableError, match=r"cannot reach 127\.0\.0\.1:1") as caught:
            await client.generate(model="m", prompt="say 1")
        assert caught.value.work is Work.NOT_DISPATCHED
        with pytest.raises(UnavailableError, match=r"cannot reach 127\.0\.0\.1:1"):
            await client.models()


async def test_a_server_that_comes_back_is_found_again(script: Script) -> None:
    # Not a port that the kernel gives: an outgoing connection could have it while nobody listens.
    async with scripted_server(script, f"127.0.0.1:{free_port()}") as address:
        client = AsyncClient(address)
        assert (await client.generate(model="m", prompt="say 1")).text == words(1)
    async with client:
        waiting = asyncio.create_task(client.generate(model="m", prompt="say 4"))
        await asyncio.sleep(0)
        async with scripted_server(script, address):
            assert (await waiting).text == words(4)
            await client.close()


async def test_a_killed_service_loses_no_request_silently() -> None:
    with server_process(f"127.0.0.1:{free_port()}") as (address, server):
        client = AsyncClient(address)
        streams = [client.stream(model="m", prompt="say 100000") for _ in range(20)]
        for stream in streams:
            await stream.__aenter__()
            await anext(stream)
        server.kill()
        for stream in streams:
            with pytest.raises(BackendLostError) as caught:
                await stream.finish()
            assert caught.value.tokens_delivered == len(stream.answer.choices[0].token_ids)
    async with client:
        waiting = asyncio.create_task(client.generate(model="m", prompt="say 4"))
        await asyncio.sleep(0)
        with server_process(address):
            assert (await waiting).text == words(4)
            await client.close()


async def test_a_deadline_ends_the_request_here_and_there(
    client: AsyncClient, script: Script
) -> None:
    await client.generate(model="m", prompt="say 1")  # connecting is no part of what is shown
    with pytest.raises(DeadlineExceededError):
        await client.generate(model="m", prompt="silent", timeout=1.5)
    await until(lambda: script.cancels)
    assert script.starts[1].timeout.ToTimedelta().total_seconds() == 1.5


async def test_no_request_is_without_a_deadline(client: AsyncClient, script: Script) -> None:
    await client.generate(model="m", prompt="say 1")
    await client.generate(build_request(model="m", prompt="say 1"))
    assert [s.timeout.seconds for s in script.starts] == [600, 600]


async def test_an_unread_stream_is_cut_at_its_bound_and_harms_no_other(
    target: str, script: Script
) -> None:
    async with AsyncClient(target, max_buffered_bytes=64 * 1024) as client:
        async with client.stream(model="m", prompt="flood 500") as stalled:
            await until(lambda: script.cancels)
            assert (await client.generate(model="m", prompt="say 5")).text == words(5)
            with pytest.raises(SlowReaderError) as caught:
                async for _ in stalled:
                    pass
        assert len(stalled.text) > 60_000, "what was buffered is still delivered"
        assert caught.value.work is Work.OUTPUT_SEEN


async def test_an_oversize_request_is_refused_without_harming_the_session(
    client: AsyncClient, script: Script
) -> None:
    await client.generate(model="m", prompt="say 1")
    with pytest.raises(InvalidRequestError, match="TOO_LARGE"):
        await client.generate(model="m", prompt="say " + "9" * 5_000_000)
    big = [f"refuse OVERLOADED {'x' * 900_000}" for _ in range(8)]
    await asyncio.gather(
        *(client.generate(model="m", prompt=p) for p in big), return_exceptions=True
    )
    assert script.sessions == 1, "large starts travel in several messages"


async def test_an_answer_without_an_end_is_an_error(client: AsyncClient) -> None:
    with pytest.raises(BackendLostError, match="before the answer was finished"):
        await client.generate(model="m", prompt="unfinished")
    with pytest.raises(RequestCancelledError) as caught:
        await client.generate(model="m", prompt="cancelled 3")
    assert caught.value.partial is not None
    assert caught.value.partial.text == words(3)


async def test_a_token_is_fetched_once_for_all_who_wait(target: str, script: Script) -> None:
    async with AsyncClient(
        target, auth_target=target, client_id="me", client_secret="right"
    ) as client:
        await asyncio.gather(*(client.generate(model="m", prompt="say 1") for _ in range(20)))
    assert script.tokens_issued == 1
    assert script.authorizations == ["Bearer token-1"]


async def test_tokens_are_renewed_in_band(target: str, script: Script) -> None:
    script.token_life = 0.5
    async with (
        AsyncClient(target, auth_target=target, client_id="me", client_secret="right") as client,
        client.stream(model="m", prompt="silent"),
    ):
        await until(lambda: len(script.renewals) >= 2)
    assert script.sessions == 1
    # However late a renewal comes, each brings a newer token than the one before.
    sent = [int(a.removeprefix("Bearer token-")) for a in script.authorizations + script.renewals]
    assert sent == sorted(set(sent))


async def test_a_revoked_token_is_replaced_once(target: str, script: Script) -> None:
    arguments = {"auth_target": target, "client_id": "me", "client_secret": "right"}
    async with AsyncClient(target, **arguments) as client:  # type: ignore[arg-type]
        script.accepts = "Bearer token-2"
        assert (await client.generate(model="m", prompt="say 1")).text == words(1)
        script.accepts = "Bearer token-3"
        assert len(await client.models()) == 5
        script.accepts = "Bearer never"
        with pytest.raises(AuthenticationError):
            await client.models()


async def test_wrong_credentials_fail_at_once_without_showing_them(target: str) -> None:
    async with AsyncClient(
        target, auth_target=target, client_id="me", client_secret="wr0ng"
    ) as client:
        with pytest.raises(AuthenticationError) as caught:
            await client.generate(model="m", prompt="say 1")
        assert "wr0ng" not in f"{caught.value} {client!r} {client._tokens!r}"
    async with AsyncClient(target, token="s3cret") as client:
        assert "s3cret" not in f"{client!r} {client._tokens!r}"


async def test_plain_calls_and_administration(client: AsyncClient) -> None:
    assert [m.name for m in await client.models()] == [f"model-{i}" for i in range(5)]
    assert (await client.count_tokens(model="m", prompt="a b c")).prompt_tokens == 3
    assert (await client.embed("m", ["ab", "abc"])).vectors == ((2.0, 1.0), (3.0, 1.0))
    assert [b.backend_id for b in await client.backends()] == ["engine-1"]
    assert (await client.drain("engine-1")).drained
    assert not (await client.undrain("engine-1")).drained
    assert (await client.explain(model="m", prompt="hi")).candidates[0].feasible
    with pytest.raises(NotFoundError):
        await client.drain("engine-9")


async def test_trace_context_travels_with_each_request(target: str, script: Script) -> None:
    async with AsyncClient(target, traceparent=lambda: "00-a-b-01") as client:
        await client.generate(model="m", prompt="say 1")
    assert script.traceparents == ["00-a-b-01"]


async def test_a_server_of_something_else_is_told_apart(target: str) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            with pytest.raises(InvalidRequestError, match="UNSUPPORTED"):
                await client.generate(model="m", prompt="say 1")
    finally:
        await server.stop(0)


async def test_closing_ends_running_requests_and_leaves_nothing_behind(
    target: str, script: Script
) -> None:
    before = asyncio.all_tasks()
    gc.collect()  # what other tests have left is not to warn here
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client = AsyncClient(target)
        running = asyncio.create_task(client.generate(model="m", prompt="silent"))
        await until(lambda: script.starts)
        await client.close()
        with pytest.raises(RequestCancelledError):
            await running
        with pytest.raises(RequestCancelledError):
            await client.generate(model="m", prompt="say 1")
        await until(lambda: not script.live)
        del client, running
        gc.collect()
    mine = {t for t in asyncio.all_tasks() - before if t.get_name().startswith("anabranch-")}
    assert mine == set()
