"""Routers, the registry and the command line follow what an engine serves while it runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from click.testing import CliRunner

from anabranch.cli import main
from anabranch.v1 import errors_pb2, model_admin_pb2, model_admin_pb2_grpc, model_pb2
from services.chassis.channels import open_channel
from services.chassis.errors import fault_from_rpc_error
from services.local_engine.app import running
from services.local_engine.settings import Settings
from tests.inprocess.test_local_engine import request
from tests.support.auth import bearer
from tests.support.consul import running_consul
from tests.support.inprocess import MODEL, cluster, model_stub
from tests.support.local_keys import LocalKeys
from tests.support.waiting import BOUND_S, until
from tests.support.weights import write_adapter


async def test_a_router_sends_to_a_model_as_soon_as_it_is_loaded_and_no_longer_when_it_is_gone(
    tmp_path: Path,
) -> None:
    allowed = tmp_path / "allowed"
    (allowed / "lake").mkdir(parents=True)
    changes = {"model_sources": (str(allowed),)}
    async with cluster(tmp_path, engines=(changes, {})) as running_cluster:
        engine, router = running_cluster.engines[0], running_cluster.router
        assert router is not None
        metadata = bearer(await running_cluster.token())
        async with (
            running_cluster.channel(engine.host) as to_engine,
            running_cluster.channel(router) as to_router,
        ):
            admin: Any = model_admin_pb2_grpc.ModelAdminServiceStub(to_engine)
            stub: Any = model_stub(to_router)

            async def listed() -> list[str]:
                page = await stub.ListModels(model_pb2.ListModelsRequest(), metadata=metadata)
                return [model.name for model in page.models]

            async def generate(model: str) -> Any:
                return await stub.Generate(request(model=model), metadata=metadata, timeout=BOUND_S)

            assert await listed() == [MODEL]
            asked = model_admin_pb2.LoadModelRequest(name="lake", source="lake")
            async for _ in admin.LoadModel(asked, metadata=metadata):
                pass
            await until(lambda: _holds(listed, [MODEL, "lake"]))
            answer = await generate("lake")
            assert answer.receipt.backend_id == engine.host.instance_id
            await admin.UnloadModel(
                model_admin_pb2.UnloadModelRequest(name=MODEL), metadata=metadata
            )
            # The router may not have heard of it yet: the other engine answers in any case.
            for _ in range(4):
                answer = await generate(MODEL)
                assert answer.receipt.backend_id == running_cluster.engines[1].host.instance_id
            await admin.UnloadModel(
                model_admin_pb2.UnloadModelRequest(name="lake", allow_last=True), metadata=metadata
            )
            await until(lambda: _holds(listed, [MODEL]))
            try:
                await generate("lake")
            except grpc.aio.AioRpcError as error:
                fault = fault_from_rpc_error(error)
            assert fault.reason == errors_pb2.ERROR_REASON_MODEL_NOT_FOUND


async def _holds(listed: Any, wanted: list[str]) -> bool:
    return sorted(await listed()) == sorted(wanted)


async def test_consul_hears_of_models_and_its_health_check_goes_on(tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    adapter = write_adapter(tmp_path / "dialect", {"layers.0.q_proj": (8, 8)}, rank=4)
    keys = LocalKeys()
    async with running_consul() as consul:
        settings = Settings(
            listen="127.0.0.1:0",
            http_listen="127.0.0.1:0",
            engine="sim",
            served_model_name="river",
            registry=consul.url,
            model_sources=(str(tmp_path),),
            max_adapters=1,
            adapters=(f"d={adapter}",),
            drain_timeout=5.0,
        )
        base = f"http://127.0.0.1:{consul.http_port}/v1"
        async with (
            running(settings, key_source=keys) as host,
            open_channel(host.address) as channel,
            aiohttp.ClientSession() as http,
        ):

            async def seen() -> list[Any]:
                async with http.get(f"{base}/health/service/anabranch-engine") as answer:
                    return list(await answer.json())

            async def healthy(models: str) -> bool:
                found = await seen()
                return [
                    (entry["Service"]["Meta"]["models"], check["Status"])
                    for entry in found
                    for check in entry["Checks"]
                    if check["CheckID"].startswith("service:")
                ] == [(models, "passing")]

            await until(lambda: healthy("river,river:d"))
            watched: list[str] = []

            async def watch() -> None:
                while True:
                    for entry in await seen():
                        watched.extend(
                            check["Status"]
                            for check in entry["Checks"]
                            if check["CheckID"].startswith("service:")
                        )
                    await asyncio.sleep(0.01)

            watching = asyncio.create_task(watch())
            stub: Any = model_admin_pb2_grpc.ModelAdminServiceStub(channel)
            metadata = bearer(keys.token("admin"))
            asked = model_admin_pb2.LoadModelRequest(name="lake", source="lake", aliases=["pond"])
            async for _ in stub.LoadModel(asked, metadata=metadata):
                pass
            await until(lambda: healthy("river,lake,pond,river:d"))
            await stub.UnloadModel(
                model_admin_pb2.UnloadModelRequest(name="river"), metadata=metadata
            )
            await until(lambda: healthy("lake,pond"))
            watching.cancel()
            await asyncio.wait({watching})
            assert set(watched) == {"passing"}
            # What changes while the registry is away is done, and told once it is back.
            await consul.stop()
            asked = model_admin_pb2.LoadModelRequest(name="sea", source="lake")
            async for _ in stub.LoadModel(asked, metadata=metadata):
                pass
            await stub.UnloadModel(
                model_admin_pb2.UnloadModelRequest(name="lake"), metadata=metadata
            )
            assert host.health.is_ready
            await consul.start()
            await until(lambda: healthy("sea"))


async def test_the_command_line_changes_what_an_engine_serves(tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    keys = LocalKeys()
    settings = Settings(
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        engine="sim",
        served_model_name="river",
        model_sources=(str(tmp_path),),
        max_adapters=1,
        sleep_mode=True,
        drain_timeout=5.0,
    )
    async with running(settings, key_source=keys) as host:
        environment = {"ANABRANCH_TOKEN": keys.token("admin"), "ANABRANCH_TARGET": host.address}

        async def run(*words: str, code: int = 0) -> str:
            done = await asyncio.to_thread(
                CliRunner().invoke, main, ["models", *words], env=environment
            )
            assert done.exit_code == code, (words, done.output, done.exception)
            return done.output

        assert "river" in await run()
        loaded = await run("load", "lake", "lake", "--max-model-len", "4096")
        assert "checking" in loaded
        assert "lake" in loaded
        assert "4096" in loaded
        steps = (await run("load", "lake", "lake", "--json")).splitlines()
        assert json.loads(steps[-1])["phase"] == "PHASE_DONE"
        listed = json.loads(await run("list", "--json"))
        assert [one["model"]["name"] for one in listed] == ["lake", "river"]
        assert "asleep (level 2)" in await run("sleep", "river", "--level", "2")
        assert "serving" in await run("wake", "river")
        refused = await run("load", "lake", "/etc", code=3)
        assert "ANABRANCH_ENGINE_MODEL_SOURCES" in refused
        assert "[MODEL_REFUSED]" in await run("load-adapter", "lake", "d", "lake", code=4)
        assert "out of service" in await run("unload", "lake")
        assert "[IN_USE]" in await run("unload", "river", code=4)
        assert "[NOT_FOUND]" in await run("unload-adapter", "river", "d", code=4)
