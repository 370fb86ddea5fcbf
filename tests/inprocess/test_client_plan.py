"""`anabranch plan` with figures that a running cluster has, and with those that it lacks."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from anabranch.cli import main
from services.chassis.settings import Secret
from services.local_engine.simulation.engine import H100_LLAMA_8B
from tests.support.inprocess import MODEL, Cluster, cluster
from tests.support.provider import KEY, routes_file, simulator

WORK = ("--requests-per-day", "1e6", "--prompt-tokens", "1000", "--output-tokens", "200")
OWN = ("--gpu-hour", "2", "--gpus", "2")
CLOUD = ("--cloud-prompt", "0.5", "--cloud-output", "2")


def invoke(*arguments: str, env: dict[str, str] | None = None) -> Result:
    clean = {name: None for name in os.environ if name.startswith("ANABRANCH_")}
    return CliRunner().invoke(main, arguments, env={**clean, **(env or {})})


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Cluster]:
    priced = {
        "provider": "simulator",
        "model": "sim-chat",
        "prices": {
            **{"input": 500_000, "cached_input": 100_000, "output": 2_000_000},
            **{"source": "a price list of this test", "as_of": "2026-11-30"},
        },
    }
    async with (
        simulator(KEY) as provider,
        cluster(tmp_path, engines=[{"max_num_seqs": 64, "sim_kv_tokens": 1_000_000}]) as running,
    ):
        models = routes_file(tmp_path, provider.url, **{MODEL: priced})
        await running.add_cloud(models, api_keys=Secret(f"simulator={KEY}"))
        await running.backends_ready(2)
        yield running


async def asked(running: Cluster, *arguments: str) -> Result:
    assert running.router is not None
    given = {
        "ANABRANCH_TARGET": running.router.address,
        "ANABRANCH_AUTH_TARGET": running.auth.address,
        "ANABRANCH_CLIENT_ID": "admin",
        "ANABRANCH_CLIENT_SECRET": running.admin_secret,
    }
    return await asyncio.to_thread(invoke, "plan", *WORK, *OWN, *arguments, env=given)


async def test_throughput_and_prices_are_those_that_the_cluster_reports(running: Cluster) -> None:
    result = await asked(running, "--model", MODEL, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    pace = H100_LLAMA_8B
    step = pace.base + 64 * (pace.decode + pace.context * 1100)
    replica = found["plan"]["replica"]
    assert replica["slots"] == 64
    assert replica["output_tokens_per_second"] == pytest.approx(64 / step)
    assert replica["dollars_per_hour"] == 4
    assert found["plan"]["prices"] == {"prompt": 0.5, "output": 2.0, "cached_prompt": 0.1}
    assert found["sources"][0] == f"throughput: fitted from the steps of 1 engine of {MODEL}"
    assert found["sources"][1].startswith("prices: what the cluster's cloud proxy has for simulat")


async def test_what_is_given_goes_before_what_the_cluster_has(running: Cluster) -> None:
    result = await asked(running, "--model", MODEL, "--slots", "8", *CLOUD, "--json")
    found = json.loads(result.stdout)["plan"]
    assert found["replica"]["slots"] == 8
    assert found["prices"]["cached_prompt"] is None


async def test_figures_that_the_cluster_lacks_are_asked_for_by_option(running: Cluster) -> None:
    no_engine = await asked(running, "--model", "cloud-chat", *CLOUD)
    assert no_engine.exit_code == 2
    assert "no engine of 'cloud-chat' has said yet how long its steps take" in no_engine.stderr
    no_price = await asked(running, "--model", "nobody", "--throughput", "1000")
    assert no_price.exit_code == 2
    assert "give --cloud-prompt and --cloud-output" in no_price.stderr


def test_without_a_cluster_a_table_bars_and_break_evens_are_printed() -> None:
    result = invoke(
        "plan", *WORK, *OWN, *CLOUD, "--throughput", "5000", "--prompt-throughput", "9e4"
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines if "$" in line and "only" in line[:11]] == [
        "cloud",
        "local",
    ]
    assert sum("← hybrid" in line for line in lines) == 1
    assert any(line.startswith("The first replica pays from about") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cloud-prompt", "1"), "--cloud-prompt and --cloud-output belong together"),
        ((*CLOUD, "--prompt-throughput", "1"), "--prompt-throughput needs --throughput"),
        ((*CLOUD, "--throughput", "1000", "--peak", "0.2"), "peak must be 1 to 20, not 0.2"),
    ],
)
def test_figures_that_make_no_sense_say_what_to_do(arguments: tuple[str, ...], said: str) -> None:
    result = invoke("plan", *WORK, *OWN, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
