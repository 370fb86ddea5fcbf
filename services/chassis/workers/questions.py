"""What the supervisor asks a worker over its private HTTP socket: its metrics, and how it is.

What the answers of all mean together is front.py's, what follows from none is stuck.py's.
"""

from __future__ import annotations

import aiohttp

from services.chassis.health import Question
from services.chassis.http_endpoint import PATHS
from services.chassis.workers.child import Child

_PROBE_WITHIN_S = 2.0


async def answers(child: Child, within: float) -> bool:
    """Whether its event loop still answers anything, within so many seconds."""
    try:
        await get(child, PATHS[Question.LIVENESS], within)
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False
    return True


async def probe(child: Child, question: Question) -> str:
    """Why its answer is no, empty for a yes; one that does not answer in time says no."""
    try:
        status, text = await get(child, PATHS[question], _PROBE_WITHIN_S)
    except (aiohttp.ClientError, OSError, TimeoutError):
        return f"worker {child.index} does not answer"
    return "" if status == 200 else f"worker {child.index} is {text.strip()}"


async def get(
    child: Child, path: str, within: float, *, accept: str = "text/plain"
) -> tuple[int, str]:
    """Status and text, in the wanted media type. Raises ClientError, OSError or TimeoutError."""
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(child.http_socket),
            timeout=aiohttp.ClientTimeout(total=within),
        ) as session,
        session.get(f"http://worker{path}", headers={"Accept": accept}) as answer,
    ):
        return answer.status, await answer.text()
