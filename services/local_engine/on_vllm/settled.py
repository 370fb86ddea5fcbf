"""What vLLM looks up for each request though it cannot change any more: looked up once.

Variables of the environment, through `vllm.envs`, and the token that ends a sequence, which the
tokenizer looks for in its vocabulary. Together they are a fifth of what a request costs in front
of the engine core. Where this vLLM has it otherwise nothing is done.
"""

from __future__ import annotations

import sys
import threading
from typing import Any


class Environment:
    """vLLM's view of the process's environment: fixed while engines run and none is loading.

    `vllm.envs` belongs to the process, so there is one of these; its methods may be called by any
    thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._loading = 0

    def loading(self) -> None:
        """A model is about to be loaded, with variables of its own; `loaded` follows."""
        with self._lock:
            self._loading += 1
            self._apply()

    def loaded(self, *, runs: bool) -> None:
        """Its loading has ended; `runs` says whether there is an engine now."""
        with self._lock:
            self._loading -= 1
            self._running += runs
            self._apply()

    def closed(self) -> None:
        """An engine that ran is gone."""
        with self._lock:
            self._running -= 1
            self._apply()

    def _apply(self) -> None:
        envs = sys.modules.get("vllm.envs")  # loading() may come before vLLM is imported
        change = "enable" if self._running and not self._loading else "disable"
        getattr(envs, f"{change}_envs_cache", _nothing)()


def _nothing() -> None:
    return


ENVIRONMENT = Environment()


def settle_end(llm: Any) -> None:
    """Has an AsyncLLM remember which token ends a sequence."""
    renderer: Any = getattr(llm, "renderer", None)
    look_up = getattr(renderer, "get_eos_token_id", None)
    if look_up is not None:
        found = look_up()
        renderer.get_eos_token_id = lambda: found
