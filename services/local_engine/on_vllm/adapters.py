"""LoRA adapters in vLLM. vLLM itself is imported only where its request type is made.

An adapter has a name and a number of its own each time that it is loaded: vLLM's prefix cache goes
by the name, its slots by the number.
"""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

from services.local_engine.abilities import Refused
from services.local_engine.on_vllm.options import VllmOptions

_log = logging.getLogger(__name__)
_RANKS = (8, 16, 32, 64, 128, 256, 512)
"""Those that every supported vLLM can be configured for."""


def adapter_arguments(options: VllmOptions) -> dict[str, Any]:
    """Keyword arguments of AsyncEngineArgs; none while adapters are switched off."""
    if not options.max_adapters:
        return {}
    rank = next((rank for rank in _RANKS if rank >= options.max_adapter_rank), _RANKS[-1])
    return {
        "enable_lora": True,
        "max_loras": options.max_adapters,
        # One more than may be served: one that is being replaced stays until it has finished.
        "max_cpu_loras": options.max_adapters + 1,
        "max_lora_rank": rank,
    }


class VllmAdapters:
    """The adapters of one AsyncLLM, by key."""

    def __init__(self, llm: Any, options: VllmOptions) -> None:
        self._llm = llm
        self._options = options
        self._numbers = itertools.count(1)
        self._requests: dict[str, Any] = {}

    @property
    def most(self) -> int:
        """How many may be loaded."""
        return self._options.max_adapters

    @property
    def most_rank(self) -> int:
        """The largest rank that is taken."""
        return self._options.max_adapter_rank

    def request_of(self, key: str) -> Any:
        """vLLM's request for it. Raises KeyError."""
        return self._requests[key]

    async def load(self, key: str, directory: Path) -> None:
        """Loads an adapter. Raises Refused with vLLM's own reason; nothing of it stays then."""
        from vllm.lora.request import LoRARequest

        number = next(self._numbers)
        request = LoRARequest(key, number, str(directory))
        try:
            loaded = await self._llm.add_lora(request)
        except Exception as error:
            await self._drop(number)
            raise Refused(_said(error)) from error
        if not loaded:
            await self._drop(number)
            raise Refused("vLLM did not take it")
        self._requests[key] = request

    async def unload(self, key: str) -> None:
        """Forgets an adapter."""
        request = self._requests.pop(key, None)
        if request is not None:
            await self._drop(request.lora_int_id)

    async def reload(self) -> None:
        """Loads all of them again: their memory was discarded. Raises what vLLM raises."""
        for request in self._requests.values():
            await self._drop(request.lora_int_id)
            await self._llm.add_lora(request)

    async def _drop(self, number: int) -> None:
        try:
            await self._llm.remove_lora(number)
        except Exception as error:  # noqa: BLE001 - an adapter that stays costs a slot, no request
            _log.warning("an adapter was not removed", extra={"cause": _said(error)})


def _said(error: Exception) -> str:
    """vLLM's reason without what it says of its own call."""
    text = str(error)
    text = text.partition("method failed: ")[2] or text
    return text.strip() or type(error).__name__
