"""What some engines can do beside running jobs: host LoRA adapters, and sleep.

Protocols only; whoever changes models at run time asks for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from services.local_engine.engine import Engine


class Refused(Exception):
    """The engine does not take it; the text says why. It is as it was before."""


class AdapterHost(Protocol):
    """The adapters of one engine. A job names one in `Job.adapter`."""

    @property
    def most(self) -> int:
        """How many may be loaded."""

    @property
    def most_rank(self) -> int:
        """The largest rank that is taken."""

    async def load(self, key: str, directory: Path) -> None:
        """Makes an adapter usable under a key that was never used before. Raises Refused."""

    async def unload(self, key: str) -> None:
        """Forgets it; no job may use it any more. One that is not loaded is no error."""


@runtime_checkable
class HostsAdapters(Protocol):
    """What an Engine is as well that can run jobs with an adapter."""

    @property
    def adapters(self) -> AdapterHost | None:
        """Its adapters; None while they are switched off."""


@runtime_checkable
class Sleeps(Protocol):
    """What an Engine is as well that can free its device's memory for a while."""

    def check_sleep(self) -> None:
        """Raises Fault UNSUPPORTED where the platform cannot, NOT_ENABLED where it is not on."""

    async def sleep(self, level: int) -> None:
        """Level 1 keeps the weights in the machine's memory, 2 discards them. No job runs."""

    async def wake(self) -> None:
        """Undoes it. Raises Refused when it cannot be done now."""


def sleep_is_off() -> Fault:
    """NOT_ENABLED, naming the setting."""
    return Fault(
        errors_pb2.ERROR_REASON_NOT_ENABLED,
        "the model was loaded without the ability to sleep",
        metadata={"setting": "ANABRANCH_ENGINE_SLEEP_MODE"},
    )


def adapters_of(engine: Engine) -> AdapterHost | None:
    """The engine's adapters; None from one that has none."""
    return engine.adapters if isinstance(engine, HostsAdapters) else None
