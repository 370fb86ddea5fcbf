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
    """Until cancelled. A process that serves nothing is not ready."""
    changed = asyncio.Event()
    roster.on_change = changed.set
    while True:
        await changed.wait()
        changed.clear()
        names = roster.names
        if names:
            host.health.well(CONCERN)
        else:
            host.health.trouble(CONCERN, "no model takes requests", restart=False)
        await host.tell({"models": listed(names)})
