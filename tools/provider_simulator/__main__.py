"""Runs the provider simulator: python -m tools.provider_simulator --listen 127.0.0.1:8400"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from aiohttp import web

from tools.provider_simulator.faults import KINDS
from tools.provider_simulator.server import Simulator

_EPILOG = """
It is NOT a model: every answer begins with "[provider simulator]" and every response carries
x-simulator: 1. The same request always gets the same answer. A prompt containing words=200 is
answered with 200 words; "call NAME" calls the tool of that name; "say it back" gets the prompt
back, in pieces of three characters; a model whose name contains "reasoner" reasons first.

try it:
  curl -sN http://127.0.0.1:8400/v1/chat/completions -H 'Authorization: Bearer simulator-key' \\
    -d '{"model":"sim-chat","stream":true,"messages":[{"role":"user","content":"hello"}]}'

answer at the pace of a busy provider (an invention, as everything here):
  python -m tools.provider_simulator --first-delay 0.15 --token-delay 0.015

spoil the next three requests, then look:
  curl -s http://127.0.0.1:8400/_sim/fault -d '{"kind":"429","count":3,"params":{"retry_after":2}}'
  curl -s http://127.0.0.1:8400/_sim/state
  curl -s -X DELETE http://127.0.0.1:8400/_sim/fault

kinds of fault, with their parameters and defaults:
"""


async def serve(host: str, port: int, simulator: Simulator) -> None:
    """Serves until SIGINT or SIGTERM."""
    runner = web.AppRunner(
        simulator.application(), handler_cancellation=True, access_log=None, shutdown_timeout=1
    )
    await runner.setup()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        await web.TCPSite(runner, host, port).start()
        bound = runner.addresses[0]
        print(f"provider simulator (not a model) on http://{bound[0]}:{bound[1]}", flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()


def main() -> int:
    """Parses the arguments and runs."""
    kinds = "\n".join(f"  {kind:20} {meaning}" for kind, meaning in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tools.provider_simulator",
        description="An HTTP server that speaks OpenAI's chat completions without a model.",
        epilog=_EPILOG + kinds,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--listen", default="127.0.0.1:8400", help="host:port (%(default)s)")
    parser.add_argument(
        "--key", action="append", help="a key to accept; may be repeated (simulator-key)"
    )
    parser.add_argument(
        "--token-delay", type=float, default=0.0, help="seconds before each piece (%(default)s)"
    )
    parser.add_argument(
        "--first-delay", type=float, help="seconds before the first piece (as --token-delay)"
    )
    parser.add_argument(
        "--watch", action="append", help="count the requests that hold this text; may be repeated"
    )
    arguments = parser.parse_args()
    host, _, port = arguments.listen.rpartition(":")
    if not host or not port.isdigit():
        parser.error("--listen must be host:port")
    keys = frozenset(arguments.key or ["simulator-key"])
    simulator = Simulator(
        keys,
        arguments.token_delay,
        first_delay=arguments.first_delay,
        watched=arguments.watch or (),
    )
    asyncio.run(serve(host, int(port), simulator))
    return 0


if __name__ == "__main__":
    sys.exit(main())
