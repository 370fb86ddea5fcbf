"""A caller's process: carries out orders over a session or over HTTP, and counts its own CPU."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Mapping
from typing import Any

import uvloop

from bench.engine import http_load, session_load
from bench.engine.flight import Answered, CancelOrder, Order
from bench.engine.worker import own_stdout, serve


async def carry_out(found: dict[str, Any]) -> Mapping[str, Any]:
    """One order. Raises what its transport does."""
    kind = found.pop("kind")
    http = found["form"] == "http"
    if kind == "cancel":
        cancel = http_load.cancel if http else session_load.cancel
        return await cancel(CancelOrder(**found))
    order = Order(**found)
    load = http_load.load if http else session_load.load
    # A pause in a caller would be read as one of the engine's.
    gc.collect()
    gc.disable()
    try:
        used = time.process_time()
        flights = await load(order)
        used = time.process_time() - used
    finally:
        gc.enable()
    return Answered(flights, used, time.monotonic() - order.at).to_json()


def main() -> int:
    """Serves orders until its input ends."""
    answer = own_stdout()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(carry_out, answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
