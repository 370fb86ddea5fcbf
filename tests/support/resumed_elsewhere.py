"""A program with an engine of its own, which goes on with seeded answers that another has begun.

Reads {"prompt", "cuts": {name: tokens so far}, "tokens"} from stdin and prints {name: the rest}.
"""

from __future__ import annotations

import asyncio
import json
import sys

from services.local_engine.engine import Continuation
from tests.contract.test_engine_core import seeded, small_engine
from tests.support.engines import run_job


async def main() -> None:
    asked = json.load(sys.stdin)
    engine = small_engine()
    await engine.start()
    found = {}
    for name, cut in asked["cuts"].items():
        rest = await run_job(
            engine,
            asked["prompt"],
            seeded(asked["tokens"] - len(cut)),
            continuation=Continuation(tuple(cut)),
        )
        found[name] = rest.tokens()
    await engine.close()
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
