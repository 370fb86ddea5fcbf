"""Tells the registry and health what the process serves, whenever that changes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from services.chassis.host import Host
from services.local_engine.roster import Roster

CONCERN = "models"
_MOST_CHARACTERS = 512
"""What Consul holds of one value; what does not fit is told to routers on their sessions alone."""


def listed(names: Iterable[str]) -> str:
    """The names as the registry holds them: as many as fit, none cut."""
    text = ""
    for name in names:
        longer = f"{text},{name}" if text else name
        if len(longer) > _MOST_CHARACTERS:
            break
        text = longer
    return text


async def follow_roster(roster: Roster, host: Host) -> None:
    """Until cancelled. A process that serves nothing is not ready.

    Health knows at once, whatever the registry takes to be told.
    """
    changed = asyncio.Event()

    def notice() -> None:
        if roster.names:
            host.health.well(CONCERN)
        else:
            host.health.trouble(CONCERN, "no model takes requests", restart=False)
        changed.set()

    roster.on_change = notice
    while True:
        await changed.wait()
        changed.clear()
        await host.tell({"models": listed(roster.names)})
