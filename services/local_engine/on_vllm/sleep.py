"""vLLM's sleep mode: weights out of the GPU's memory and back. Does not import vLLM."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from services.local_engine.abilities import Refused, sleep_is_off
from services.local_engine.on_vllm.adapters import VllmAdapters


class VllmSleep:
    """Of one AsyncLLM. `available`: the platform can; `enabled`: it was configured so."""

    def __init__(
        self, llm: Any, *, enabled: bool, available: bool, adapters: VllmAdapters | None
    ) -> None:
        self._llm = llm
        self._enabled = enabled
        self._available = available
        self._adapters = adapters
        self._level = 0

    def check(self) -> None:
        """Raises Fault UNSUPPORTED and NOT_ENABLED."""
        if not self._available:
            raise Fault(
                errors_pb2.ERROR_REASON_UNSUPPORTED,
                "models cannot sleep on this platform: vLLM does it on GPUs alone",
                metadata={"feature": "sleep"},
            )
        if not self._enabled:
            raise sleep_is_off()

    async def sleep(self, level: int) -> None:
        """No job may run. Level 2 discards the weights. Raises Refused; it is awake then."""
        self.check()
        try:
            await self._llm.sleep(level)
        except Exception as error:
            # Its scheduler pauses first: what fails after that must not leave it so.
            with suppress(Exception):
                await self._llm.wake_up()
            raise Refused(f"vLLM cannot put it to sleep: {error}") from error
        self._level = level

    async def wake(self) -> None:
        """Raises Refused with vLLM's reason; it sleeps on."""
        try:
            if self._level < 2:
                await self._llm.wake_up()
            else:
                # Room for the weights first, then what is in them, then the rest: the order that
                # vLLM's documentation gives for level 2.
                await self._llm.wake_up(tags=["weights"])
                await self._llm.collective_rpc("reload_weights")
                await self._llm.wake_up(tags=["kv_cache"])
                if self._adapters is not None:
                    await self._adapters.reload()
        except Exception as error:
            raise Refused(f"vLLM cannot wake it: {error}") from error
        self._level = 0
