"""What a response's headers say is left is minded by the next request, before any refusal."""

from __future__ import annotations

import pytest

from services.chassis.errors import Fault
from services.cloud_proxy.rate_limits import LimitKind, RateLimit
from tests.support.cloud import ask, cloud_proxy
from tests.support.provider import KEY


async def test_a_provider_with_nothing_left_is_not_asked_and_the_caller_is_told_for_how_long(
    tmp_path, monkeypatch
):
    spent = [RateLimit(LimitKind.REQUESTS, 0, 40.0)]
    monkeypatch.setattr("services.cloud_proxy.upstream.read_limits", lambda headers, now: spent)
    async with cloud_proxy(tmp_path, keys=f"simulator={KEY} simulator={KEY}-other",
                           accepted=(KEY, f"{KEY}-other")) as proxy:  # fmt: skip
        for _ in range(2):
            # Each key has a quota of its own.
            await proxy.answer(ask())
        with pytest.raises(Fault) as caught:
            await proxy.answer(ask())
        assert (await proxy.provider.state())["seen"] == 2
    assert "limiting" in caught.value.message
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 40
