"""Commands that other packages add to `anabranch`, through entry points; loaded when needed.

The services bring commands of their own that way, so that the client never imports them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points

import click

ENTRY_POINTS = "anabranch.commands"


def installed() -> Mapping[str, EntryPoint]:
    """The commands that installed packages declare, by name."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


class ExtensibleGroup(click.Group):
    """A group that also has the declared commands; its own come first.

    What a declared command needs may not be installed, as in a light installation without the
    services: then the group does not have it.
    """

    declared: Callable[[], Mapping[str, EntryPoint]] = staticmethod(installed)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command that can be loaded."""
        own = super().list_commands(ctx)
        found = [name for name, point in self.declared().items() if _load(point) is not None]
        return sorted({*own, *found})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; None when there is none."""
        command = super().get_command(ctx, cmd_name)
        if command is None and (point := self.declared().get(cmd_name)) is not None:
            command = _load(point)
        return command


def _load(point: EntryPoint) -> click.Command | None:
    try:
        command = point.load()
    except ModuleNotFoundError:
        return None
    if not isinstance(command, click.Command):
        raise TypeError(f"the entry point {point.name} of {ENTRY_POINTS} is no command")
    return command
