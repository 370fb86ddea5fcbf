"""vLLM's own library in a process that takes orders: offline as vllm.LLM, or as AsyncLLM with a
task for each request. This process is its own caller.

The first order says how to load the model; see arguments.py.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import uvloop

from bench.engine.flight import Answered, Flight, Order
from bench.engine.worker import own_stdout, serve

_LOOK_S = 300.0


class Library(Protocol):
    """vLLM, loaded."""

    async def wave(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[Flight]:
        """Asks all of them at once and waits for every answer."""

    def close(self) -> None:
        """Ends it and its processes."""


class Offline:
    """vllm.LLM: no stream, so no times of single tokens."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        from vllm import LLM

        self._llm = LLM(**arguments)

    async def wave(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[Flight]:
        """One call of `generate`; every answer ends with the call."""
        sent = time.monotonic()
        found = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            _params(tokens),
            use_tqdm=False,
        )
        last = time.monotonic()
        return [Flight(sent, 0.0, last, len(one.outputs[0].token_ids)) for one in found]

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


class InProcess:
    """AsyncLLM, as vLLM's documentation shows it: an `async for` in a task for each request."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        self._numbers = itertools.count()

    async def wave(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[Flight]:
        """A task for each prompt. All are asked now: a later one's wait for its turn counts."""
        sent = time.monotonic()
        return list(await asyncio.gather(*(self._one(prompt, tokens, sent) for prompt in prompts)))

    async def _one(self, prompt: Sequence[int], tokens: int, sent: float) -> Flight:
        flight = Flight(sent=sent)
        stream = self._llm.generate(
            {"prompt_token_ids": list(prompt)},
            _params(tokens, stream=True),
            f"bench-{next(self._numbers)}",
        )
        async for output in stream:
            now = time.monotonic()
            count = len(output.outputs[0].token_ids)
            if count:
                flight.first = flight.first or now
                flight.last = now
                flight.tokens += count
        return flight

    def close(self) -> None:
        self._llm.shutdown()


def _params(tokens: int, *, stream: bool = False) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
    return SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, output_kind=kind)


class Desk:
    """Carries out orders with the library that the first of them asks for."""

    def __init__(self, form: str) -> None:
        kinds: dict[str, Callable[[dict[str, Any]], Library]]
        kinds = {"offline": Offline, "async": InProcess}
        self._kind = kinds[form]
        self.library: Library | None = None

    async def carry_out(self, found: dict[str, Any]) -> dict[str, Any]:
        """One order; raises what vLLM does."""
        if found["kind"] == "load-model":
            os.environ.update(found["environment"])
            self.library = self._kind(found["arguments"])
            return {}
        found.pop("kind")
        order = Order(**found)
        assert self.library is not None
        began, flights = time.monotonic(), []
        used = time.process_time()
        async with asyncio.timeout(_LOOK_S):
            for wave in order.waves:
                flights += await self.library.wave(wave, order.tokens)
        return Answered(flights, time.process_time() - used, time.monotonic() - began).to_json()


async def work(form: str, answer: Callable[[Mapping[str, Any]], None]) -> None:
    """Serves orders until its input ends, then ends vLLM."""
    desk = Desk(form)
    try:
        await serve(desk.carry_out, answer)
    finally:
        if desk.library is not None:
            desk.library.close()


def main() -> int:
    """Serves orders until its input ends."""
    answer = own_stdout()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work(sys.argv[1], answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
