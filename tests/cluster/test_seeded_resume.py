"""A seeded, sampled answer of real vLLM engines behind the router, one killed in its middle."""

from __future__ import annotations

from typing import Any

import pytest

from anabranch import AsyncClient
from tests.support.auth import until
from tests.support.engines import MODEL
from tools.cluster import Cluster, EngineKind, EngineSpec

pytestmark = [pytest.mark.cluster, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

NAME = "small"
SETTINGS = {
    "MODEL": str(MODEL),
    "SERVED_MODEL_NAME": NAME,
    "MAX_MODEL_LEN": "1024",
    "MAX_NUM_SEQS": "4",
    "CPU_KV_CACHE_GIB": "1",
    "CPU_THREADS": "1",
}


async def test_an_engine_killed_mid_answer_changes_no_drawn_token(tmp_path):
    if not MODEL.is_dir():
        pytest.skip("no model: run tools/fetch_model.py")
    engines = [EngineSpec(name, EngineKind.VLLM, str(MODEL), SETTINGS) for name in ("one", "two")]
    asked: dict[str, Any] = {
        "model": NAME,
        "prompt": "Once upon a time there was a river that",
        "max_tokens": 120,
        "ignore_eos": True,
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": 50,
        "seed": 7,
    }
    async with (
        Cluster(tmp_path, engines=engines, cloud=False) as cluster,
        AsyncClient(
            cluster.router,
            auth_target=cluster.auth,
            client_id="demo",
            client_secret=cluster.credentials["demo"],
        ) as caller,
    ):
        undisturbed = await caller.generate(**asked)
        count, victim = 0, ""
        async with caller.stream(**asked) as stream:
            async for chunk in stream:
                count += len(chunk.token_ids)
                if count > 20 and not victim:

                    async def one_has_work() -> bool:
                        nonlocal victim
                        for backend in await cluster.backends():
                            victim = backend.backend_id if backend.in_flight else victim
                        return bool(victim)

                    await until(one_has_work)
                    await cluster.kill(victim)
            answer = await stream.finish()
    assert answer.receipt is not None
    assert answer.receipt.resumed_at_tokens
    assert answer.receipt.backend_id != victim
    assert answer.choices[0].token_ids == undisturbed.choices[0].token_ids
    assert answer.text == undisturbed.text
