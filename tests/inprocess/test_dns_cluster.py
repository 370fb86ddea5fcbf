"""A whole cluster that finds itself by names alone, as in Kubernetes without Consul."""

from __future__ import annotations

from pathlib import Path

import pytest

from anabranch.v1 import generation_pb2 as pb
from services.local_engine.simulation.model import answer_seed, token_at
from tests.support import tls
from tests.support.auth import bearer, until
from tests.support.inprocess import MODEL, cluster, model_stub
from tests.support.quotas import gate_of
from tests.support.waiting import BOUND_S
from tools.cluster.ports import free_port


def local_only(prompt: list[int]) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        model=MODEL,
        prompt_token_ids=prompt,
        sampling=pb.Sampling(max_tokens=8, ignore_eos=True),
        routing=pb.Routing(residency=pb.RESIDENCY_LOCAL_ONLY),
    )


@pytest.mark.parametrize("encrypted", [False, True])
async def test_names_are_enough_for_backends_auth_peers_and_local_only(
    tmp_path: Path, encrypted: bool
):
    """Under TLS the certificates hold the services' names: the addresses found do not matter."""
    certificates = tls.made(tmp_path / "certs") if encrypted else None
    engines, routers = ([free_port() for _ in range(2)] for _ in range(2))
    async with cluster(tmp_path, engines=(), certificates=certificates) as s:
        listed = {
            "anabranch-auth": [int(s.auth.address.rpartition(":")[2])],
            "anabranch-engine": engines,
            "anabranch-router": routers,
        }
        groups = [
            f"{service}={','.join(f'localhost:{port}' for port in ports)}"
            for service, ports in listed.items()
        ]
        s.registry = f"dns:{';'.join(groups)}?refresh=200ms&family=ipv4"
        await s.add_engine(listen=f"127.0.0.1:{engines[0]}")
        async with (
            s.one_more_router(listen=f"127.0.0.1:{routers[0]}") as router,
            s.one_more_router(listen=f"127.0.0.1:{routers[1]}"),
            s.channel(router) as channel,
        ):
            s.router = router
            await s.backends_ready(1)
            secret = await s.new_client("caller", "generate")
            auth = bearer(await s.token("caller", secret))
            stub = model_stub(channel)
            answer = await stub.Generate(local_only([300]), metadata=auth, timeout=BOUND_S)
            seed = answer_seed([300])
            assert list(answer.choices[0].token_ids) == [token_at(seed, n) for n in range(8)]
            assert answer.receipt.tier == pb.TIER_LOCAL
            assert answer.receipt.backend_id == f"anabranch-engine-127.0.0.1:{engines[0]}"

            async def peers_counted() -> bool:
                return bool(gate_of(router)._processes() == 2)

            await until(peers_counted)

            # One that comes up where the names say is used, though it never registers.
            await s.add_engine(listen=f"127.0.0.1:{engines[1]}")
            await s.backends_ready(2)
            await s.engines[0].stop()
            await s.backends_ready(1)
            answer = await stub.Generate(local_only([301]), metadata=auth, timeout=BOUND_S)
            assert answer.receipt.backend_id == f"anabranch-engine-127.0.0.1:{engines[1]}"
