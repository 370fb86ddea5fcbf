"""Failover between equivalent models: before the first output, never after, and always told."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import reason_name
from tests.support.cloud import Proxy, ask, cloud_proxy
from tests.support.provider import KEY

# Three ways to the same simulator; each fault there befalls the next request, whoever asks.
ROUTES = {
    "first": {"provider": "simulator", "model": "sim-first", "fallbacks": ["second", "third"]},
    "second": {"provider": "simulator", "model": "sim-second", "api_key": "other"},
    "third": {"provider": "simulator", "model": "sim-third", "api_key": "third",
              "capabilities": ["generate", "tools"]},
    "lame": {"provider": "simulator", "model": "sim-lame", "fallbacks": ["blind", "third"],
             "capabilities": ["generate", "tools"]},
    "blind": {"provider": "simulator", "model": "sim-blind", "capabilities": ["generate"]},
}  # fmt: skip
KEYS = f"simulator={KEY} other={KEY} third={KEY}"


@pytest.fixture
async def proxy(tmp_path) -> AsyncIterator[Proxy]:
    patience = {"first_token_timeout": 600.0, "inter_token_timeout": 600.0}
    async with cloud_proxy(tmp_path, routes=ROUTES, keys=KEYS, attempts=1, **patience) as found:
        yield found


def trail(receipt: pb.RouteReceipt) -> list[tuple[str, str, int]]:
    return [(a.model, a.error, a.http_status) for a in receipt.provider_attempts]


@pytest.mark.parametrize(
    ("fault", "params", "error", "status"),
    [
        ("5xx", {"status": 503}, "failed", 503),
        ("429", {"retry_after": 30}, "busy", 429),
        ("4xx", {"status": 401}, "refused_key", 401),
        ("4xx", {"status": 402}, "no_credit", 402),
        ("4xx", {"status": 404}, "misconfigured", 404),
        ("error_after_200", {}, "failed", 200),
        ("cut", {"after": 0}, "broken", 200),
        ("wrong_content_type", {}, "broken", 200),
    ],
)
async def test_equivalent_model_answers_and_the_receipt_tells(proxy, fault, params, error, status):
    await proxy.provider.fault(fault, **params)
    answer = await proxy.answer(ask(model="first"))
    assert answer.choices[0].finish_reason == pb.FINISH_REASON_STOP
    assert answer.receipt.served_model == "sim-second"
    found = trail(answer.receipt)
    assert found[-1] == ("sim-second", "", 200)
    assert found[0][0] == "sim-first"
    # A connection that is reset before anything came is no answer at all.
    assert found[0][1] in ((error, "failed") if fault == "cut" else (error,))
    assert found[0][2] == status
    seen = (await proxy.provider.state())["requests"]
    assert [body["model"] for body in seen] == ["sim-first", "sim-second"]


async def test_every_equivalent_is_tried_and_the_last_failure_is_told(proxy):
    await proxy.provider.fault("5xx", count=3)
    chunks, ended = await proxy.chunks(ask(model="first"))
    assert not chunks
    assert reason_name(ended.reason) == "PROVIDER_ERROR"
    assert ended.metadata["attempts"] == "3"
    assert (await proxy.provider.state())["seen"] == 3


async def test_nothing_is_asked_elsewhere_after_output(proxy):
    await proxy.provider.fault("cut", after=3)
    chunks, ended = await proxy.chunks(ask(model="first"))
    assert sum(len(c.text.split()) for c in chunks) == 3
    assert str(ended.work) == "output_seen"
    assert (await proxy.provider.state())["seen"] == 1


async def test_what_an_earlier_attempt_may_have_cost_is_not_denied(proxy):
    await proxy.provider.fault("5xx", status=500)
    await proxy.provider.fault("429", count=2, retry_after=30)
    _, ended = await proxy.chunks(ask(model="first"))
    # The last one was refused by status, the first one may have run.
    assert ended.code.name == "RESOURCE_EXHAUSTED"
    assert str(ended.work) == "maybe_billed"


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_what_is_wrong_with_the_request_is_wrong_everywhere(proxy, status):
    await proxy.provider.fault("4xx", status=status)
    _, ended = await proxy.chunks(ask(model="first"))
    assert reason_name(ended.reason) == "INVALID_REQUEST"
    assert (await proxy.provider.state())["seen"] == 1


async def test_fallback_that_cannot_do_what_is_asked_is_passed_over(proxy):
    await proxy.provider.fault("5xx")
    answer = await proxy.answer(ask(model="lame", tools=[pb.Tool(name="clock")]))
    assert answer.receipt.served_model == "sim-third"


async def test_limited_provider_is_not_waited_for_while_another_answers(proxy):
    await proxy.provider.fault("429", retry_after=1)
    answer = await proxy.answer(ask(model="first"))
    assert [a.error for a in answer.receipt.provider_attempts] == ["busy", ""]
    # Its key is still cooling, so that it is not even asked now.
    answer = await proxy.answer(ask(model="first"))
    assert [a.model for a in answer.receipt.provider_attempts] == ["sim-second"]


async def test_proxy_with_more_models_than_the_registry_can_list_serves_them_all(tmp_path):
    many = {
        f"model-with-a-long-name-{n:03}": {"provider": "simulator", "model": f"sim-{n}"}
        for n in range(60)
    }
    async with cloud_proxy(tmp_path, routes=many, registry="memory:many", warm=False) as proxy:
        answer = await proxy.answer(ask(model="model-with-a-long-name-059"))
        assert answer.receipt.served_model == "sim-59"
