"""The provider simulator on a port of its own, and the files that route a cloud proxy to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from services.cloud_proxy.config import Route, read_routes
from services.cloud_proxy.profile_files import built_in_profiles
from tests.support.waiting import BOUND_S
from tools.provider_simulator.server import Simulator

KEY = "sk-simulated-0123456789-do-not-log"


class Provider:
    """A running simulator, seen from outside."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url = url
        self._http = http

    async def fault(self, kind: str, count: int = 1, **params: Any) -> None:
        """Spoils the next `count` requests."""
        document = {"kind": kind, "count": count, "params": params}
        async with self._http.post(f"{self.url}/_sim/fault", json=document) as response:
            assert response.status == 200, await response.text()

    async def state(self) -> dict[str, Any]:
        """What the simulator has seen."""
        async with self._http.get(f"{self.url}/_sim/state") as response:
            found: dict[str, Any] = await response.json()
            return found

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Waits until its state satisfies `condition`."""
        async with asyncio.timeout(BOUND_S):
            while not condition(await self.state()):
                await asyncio.sleep(0.01)


@asynccontextmanager
async def simulator(
    *keys: str,
    token_delay: float = 0.0,
    first_delay: float | None = None,
    watched: tuple[str, ...] = (),
) -> AsyncIterator[Provider]:
    """A simulator on a free port of this machine."""
    server = Simulator(
        frozenset(keys or (KEY,)), token_delay, first_delay=first_delay, watched=watched
    )
    runner = web.AppRunner(
        server.application(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        async with aiohttp.ClientSession() as http:
            yield Provider(f"http://{host}:{port}", http)
    finally:
        await runner.cleanup()


def routes_file(directory: Path, url: str, **more: dict[str, Any]) -> Path:
    """A routes file to the simulator: cloud-chat, cloud-reasoner, cloud-whole, and `more`."""
    models = [
        {"name": f"cloud-{kind}", "provider": "simulator", "model": f"sim-{kind}", "base_url": url}
        for kind in ("chat", "reasoner", "whole")
    ]
    models[0]["aliases"] = ["chat"]  # type: ignore[assignment]
    models += [{"name": name, "base_url": url, **entry} for name, entry in more.items()]
    path = directory / "routes.yaml"
    path.write_text(yaml.safe_dump({"models": models}))
    return path


def route(directory: Path, provider: str, model: str, **entry: Any) -> Route:
    """One route of a built-in profile, for tests without a network."""
    path = directory / "one.yaml"
    document = {"name": "m", "provider": provider, "model": model, **entry}
    path.write_text(yaml.safe_dump({"models": [document]}))
    return read_routes(path, built_in_profiles(), {provider})["m"]
