"""The contract's enums under short names: `Residency.LOCAL_ONLY`, `"local-only"`.

Values equal those on the wire (a test compares them). Holds no behaviour.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Self


class WireEnum(IntEnum):
    """An enum of the contract. A value newer than this library survives as UNKNOWN_<n>."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, int):
            return None
        member = int.__new__(cls, value)
        member._name_ = f"UNKNOWN_{value}"
        member._value_ = value
        return member

    @classmethod
    def parse(cls, value: str | int) -> Self:
        """Takes a member, its number or its name in any case, with - or _.

        Raises ValueError with the allowed names.
        """
        if isinstance(value, int):
            return cls(value)
        member = cls.__members__.get(value.strip().upper().replace("-", "_"))
        if member is None:
            raise ValueError(f"{value!r} is not one of {', '.join(cls.names())}")
        return member

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names that people type: lower case, with hyphens, without `unspecified`."""
        return tuple(m.name.lower().replace("_", "-") for m in cls if m.value)

    def __str__(self) -> str:
        return self.name.lower()

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


class Residency(WireEnum):
    """Where a request may be answered."""

    UNSPECIFIED = 0
    LOCAL_FIRST = 1
    LOCAL_ONLY = 2
    CLOUD_FIRST = 3
    CLOUD_ONLY = 4


class Priority(WireEnum):
    """Who goes first when capacity is short."""

    UNSPECIFIED = 0
    INTERACTIVE = 1
    BATCH = 2
    SYSTEM = 3


class Tier(WireEnum):
    """On whose hardware a request ran."""

    UNSPECIFIED = 0
    LOCAL = 1
    CLOUD = 2


class Role(WireEnum):
    """Who said a message."""

    UNSPECIFIED = 0
    SYSTEM = 1
    USER = 2
    ASSISTANT = 3
    TOOL = 4


class FinishReason(WireEnum):
    """Why a choice ended."""

    UNSPECIFIED = 0
    STOP = 1
    LENGTH = 2
    TOOL_CALLS = 3
    CONTENT_FILTER = 4
    CANCELLED = 5
    ERROR = 6


class ReasoningEffort(WireEnum):
    """How much a model should think before it answers."""

    UNSPECIFIED = 0
    NONE = 1
    LOW = 2
    MEDIUM = 3
    HIGH = 4


class OverflowReason(WireEnum):
    """Why a request left its preferred tier."""

    UNSPECIFIED = 0
    SATURATED = 1
    ABSENT = 2
    UNHEALTHY = 3
    FAILED = 4


class CacheSource(WireEnum):
    """Where an answer came from that was not generated for its request."""

    UNSPECIFIED = 0
    MEMORY = 1
    REDIS = 2
    DISK = 3
    IN_FLIGHT = 4


class UsageSource(WireEnum):
    """Where token counts come from."""

    UNSPECIFIED = 0
    PROVIDER = 1
    ESTIMATED = 2
    PARTIAL = 3


class ToolChoiceMode(WireEnum):
    """Whether the model may, must or must not call a tool."""

    UNSPECIFIED = 0
    AUTO = 1
    NONE = 2
    REQUIRED = 3


class Capability(WireEnum):
    """What a model can do."""

    UNSPECIFIED = 0
    GENERATE = 1
    EMBED = 2
    RESUME_TOKENS = 3
    RESUME_TEXT = 4
    TOOLS = 5
    STRUCTURED_OUTPUT = 6
    IMAGES = 7
    REASONING = 8


class BackendState(WireEnum):
    """Whether a backend can take work."""

    UNSPECIFIED = 0
    CONNECTING = 1
    READY = 2
    DRAINING = 3
    LOST = 4


class BreakerState(WireEnum):
    """A backend's circuit breaker."""

    UNSPECIFIED = 0
    CLOSED = 1
    OPEN = 2
    HALF_OPEN = 3


class Verdict(WireEnum):
    """What the router would do with a request."""

    UNSPECIFIED = 0
    DISPATCH = 1
    WAIT = 2
    REFUSE = 3


class AuditDetail(WireEnum):
    """How much of a tenant's requests is written to the audit trail."""

    UNSPECIFIED = 0
    NONE = 1
    METADATA = 2
    CONTENT = 3


class Cipher(WireEnum):
    """With what a tenant's stored data is encrypted."""

    UNSPECIFIED = 0
    AES_256_GCM = 1
    SM4_GCM = 2


class QuotaUnit(WireEnum):
    """What a quota counts."""

    UNSPECIFIED = 0
    REQUESTS = 1
    TOKENS = 2
    COST_MICROUSD = 3
