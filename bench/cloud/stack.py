"""The processes of a run: auth, the mock provider, the cloud proxy. Real ones, on this machine."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.cloud.plan import DIALECTS, KEY, MODEL
from bench.processes import Processes, free_address
from tools import identities
from tools.cluster.process import ProcessSpec
from tools.cluster.recipes import ROOT

_PROVIDERS = {"openai_chat": "openai-compatible", "anthropic": "anthropic", "gemini": "gemini"}
_PROXY, _MOCK = "cloud", "mock"


class Stack:
    """The processes, up while the context is entered."""

    def __init__(self, folder: Path) -> None:
        self._processes = Processes(folder)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._processes)
            await self._start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    @property
    def target(self) -> str:
        """host:port of the proxy."""
        return self._processes.address(_PROXY)

    @property
    def provider(self) -> str:
        """The mock's address as a URL."""
        return f"http://{self._processes.address(_MOCK)}"

    def pids(self) -> list[int]:
        """The proxy's processes."""
        return self._processes.pids(_PROXY)

    async def authorization(self) -> str:
        """A caller's credential."""
        return await self._processes.authorization()

    async def lost(self) -> dict[str, float]:
        """When the mock lost the connections of unfinished answers, by their ids."""
        return await asyncio.to_thread(_fetch, f"{self.provider}/lost")

    async def _start(self) -> None:
        processes = self._processes
        auth = await processes.auth(identities.IDENTITIES)
        address = free_address()
        await processes.launch(
            ProcessSpec(
                name=_MOCK,
                argv=(sys.executable, "-m", "bench.cloud.mock", "--listen", address),
                env={"PYTHONPATH": str(ROOT)},
                probe="http",
                address=address,
                drain=2.0,
            )
        )
        key = processes.secrets / "provider"
        identities.write_private(key, KEY + "\n")
        prices = {"input": 1000000, "cached_input": 100000, "output": 2000000,
                  "source": "invented for the benchmark", "as_of": "2026-01-01"}  # fmt: skip
        models = [
            {
                "name": dialect,
                "provider": _PROVIDERS[dialect],
                "model": MODEL,
                "base_url": self.provider,
                "api_key_file": str(key),
                "prices": prices,
                "max_output": 4096,
            }
            for dialect in DIALECTS
        ]
        file = processes.folder / "models.yaml"
        # JSON is YAML.
        file.write_text(json.dumps({"models": models}) + "\n", encoding="utf-8")
        await processes.service(
            _PROXY,
            "services.cloud_proxy",
            "ANABRANCH_CLOUD_",
            {
                "AUTH_TARGET": auth,
                "MODELS_FILE": str(file),
                "MAX_IN_FLIGHT": "4096",
                "MAX_CONCURRENT_RPCS": "4096",
                "LOG_LEVEL": "warning",
            },
        )


def _fetch(url: str) -> dict[str, float]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        found: dict[str, float] = json.load(answer)
    return found
