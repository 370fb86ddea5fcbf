"""Runs the provider simulator: python -m tools.provider_simulator --listen 127.0.0.1:8400"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from aiohttp import web

from tools.provider_simulator.faults import HINTS, KINDS
from tools.provider_simulator.recordings import DIRECTORY
from tools.provider_simulator.server import Simulator

_EPILOG = """
It is NOT a model: every answer begins with "[provider simulator]" and every response carries
x-simulator: 1. The same request always gets the same answer. A prompt containing words=200 is
answered with 200 words; "call NAME" calls the tool of that name, "without arguments" if it says
so; "say it back" gets the prompt back, in pieces of three characters; a model whose name contains
"reasoner" reasons first. Embeddings are of unit length, with 8 numbers or as many as asked for.

try each dialect (SIM=http://127.0.0.1:8400):
  OpenAI, at /v1/chat/completions below any prefix, and /v1/embeddings:
    curl -sN $SIM/v1/chat/completions -H 'Authorization: Bearer simulator-key' \\
      -d '{"model":"sim-chat","stream":true,"messages":[{"role":"user","content":"hello"}]}'
  Anthropic, at /v1/messages and /v1/messages/count_tokens:
    curl -sN $SIM/v1/messages -H 'x-api-key: simulator-key' -H 'anthropic-version: 2023-06-01' \\
      -d '{"model":"sim","max_tokens":64,"stream":true,"messages":[{"role":"user","content":"hi"}]}'
  Gemini, at :generateContent, :streamGenerateContent, :countTokens, :batchEmbedContents:
    curl -sN "$SIM/v1beta/models/sim:streamGenerateContent?alt=sse" \\
      -H 'x-goog-api-key: simulator-key' -d '{"contents":[{"parts":[{"text":"hello"}]}]}'
  Ollama, at /api/chat and /api/embed, without a key or with a bearer token:
    curl -sN $SIM/api/chat -d '{"model":"sim","messages":[{"role":"user","content":"hello"}]}'
  Bedrock, at /model/ID/converse, converse-stream, invoke (embeddings), count-tokens. Requests are
  signed for a key ID:SECRET, or carry a bearer token:
    curl -s $SIM/model/sim/converse -H 'Authorization: Bearer simulator-key' \\
      -d '{"messages":[{"role":"user","content":[{"text":"hello"}]}]}'

replay a recorded stream, in pieces that depend on a seed:
  curl -sN $SIM/v1/chat/completions -H 'Authorization: Bearer simulator-key' -H 'x-sim-seed: 7' \\
    -d '{"model":"recording:openai_chat/deepseek","stream":true,"messages":[]}'

answer at the pace of a busy provider (an invention, as everything here):
  python -m tools.provider_simulator --first-delay 0.15 --token-delay 0.015

spoil the next three requests, whichever dialect they come in, then look:
  curl -s $SIM/_sim/fault -d '{"kind":"429","count":3,"params":{"retry_after":2}}'
  curl -s $SIM/_sim/state
  curl -s -X DELETE $SIM/_sim/fault

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
        description="An HTTP server that speaks the dialects of LLM providers without a model.",
        epilog=f"{_EPILOG}{kinds}\n\n{HINTS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--listen", default="127.0.0.1:8400", help="host:port (%(default)s)")
    parser.add_argument(
        "--key",
        action="append",
        help="a key to accept, ID:SECRET for signed requests; may be repeated (simulator-key)",
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
    parser.add_argument(
        "--recordings",
        type=Path,
        default=DIRECTORY,
        help="where recordings to replay are, a folder a dialect (tests/recordings)",
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
        directory=arguments.recordings,
    )
    asyncio.run(serve(host, int(port), simulator))
    return 0


if __name__ == "__main__":
    sys.exit(main())
