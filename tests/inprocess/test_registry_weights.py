"""A process's weight in the registry is its share where the policy goes by weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from anabranch import AsyncClient
from tests.support.inprocess import MODEL, cluster


async def test_a_router_that_goes_by_weights_follows_the_registrys(tmp_path: Path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nalgorithm: weighted\nslow_start: 0s\n")
    engines = (
        {"service_id": "light"},
        {"service_id": "heavy", "registry_weight": 65535},
    )
    answers: Counter[str] = Counter()
    async with cluster(tmp_path, engines=engines, router={"policy": f"file:{policy}"}) as running:
        assert running.router is not None
        async with AsyncClient(running.router.address, token=await running.token()) as client:
            for _ in range(20):
                answer = await client.generate(model=MODEL, messages="x", max_tokens=1)
                assert answer.receipt is not None
                answers[answer.receipt.backend_id] += 1
    assert answers == {"heavy": 20}
