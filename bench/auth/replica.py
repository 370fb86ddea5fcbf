"""The auth service with a key rotation that takes less time than its settings permit.

    python -m bench.auth.replica SECONDS

Its environment is read as that of services.auth, except that the next key is published only so
long before it signs; verifiers are pushed the key anyway.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from services.auth import app
from services.auth.settings import Settings
from services.chassis import process
from services.chassis.host import Host


@asynccontextmanager
async def _running(ahead: float, settings: Settings) -> AsyncIterator[Host]:
    # The bounds hold for what comes from the environment.
    faster = dataclasses.replace(settings, rotation_publish_ahead=ahead, jwks_max_age=ahead / 2)
    async with app.running(faster) as host:
        yield host


if __name__ == "__main__":
    running = partial(_running, float(sys.argv[1]))
    sys.exit(process.main(app.SERVICE, "ANABRANCH_AUTH_", Settings, running, os.environ, []))
