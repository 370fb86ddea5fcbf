"""Waits until a gateway answers a completion: it listens long before it knows its engine."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request

from bench.dataplane.requests import WORD, chat
from tools.cluster.process import ClusterError, Running

_PATIENCE_S = 60.0
_ONCE_S = 10.0
_PAUSE_S = 0.2


async def until_answering(gateway: Running, pace_ms: int) -> None:
    """Asks for one token until it comes. Raises ClusterError with the end of the log."""
    address, deadline = gateway.spec.address, time.monotonic() + _PATIENCE_S
    while True:
        answer = await asyncio.to_thread(_ask, f"http://{address}/v1/chat/completions", pace_ms)
        if WORD.strip() in answer:
            return
        if time.monotonic() > deadline or gateway.exit_status is not None:
            raise ClusterError(
                f"{gateway.spec.name} did not answer a completion: {answer[:300]}. "
                f"The end of {gateway.log}:\n{gateway.last_lines()}"
            )
        await asyncio.sleep(_PAUSE_S)


def _ask(url: str, pace_ms: int) -> str:
    request = urllib.request.Request(  # noqa: S310 - always this machine's
        url, data=chat(pace_ms, 1), headers={"content-type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_ONCE_S) as answer:
            return str(answer.read().decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode('utf-8', 'replace')}"
    except OSError as error:
        return str(error)
