"""What a routing decision is made from, and what it is. Values only.

Times are in seconds, sizes in tokens. What is made anew for each request is a named
tuple: those cost a third of a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from services.router.core.prediction import Outlook


class Tier(Enum):
    """On whose hardware a backend runs."""

    LOCAL = "local"
    CLOUD = "cloud"


class Residency(Enum):
    """The tiers that a request may use, `tiers`, in order of preference."""

    def __init__(self, *tiers: Tier) -> None:
        self.tiers = tiers

    LOCAL_FIRST = (Tier.LOCAL, Tier.CLOUD)
    LOCAL_ONLY = (Tier.LOCAL,)
    CLOUD_FIRST = (Tier.CLOUD, Tier.LOCAL)
    CLOUD_ONLY = (Tier.CLOUD,)


class Resume(Enum):
    """What a backend must be able to do for a request."""

    FRESH = "fresh"
    AFTER_TOKENS = "tokens"
    AFTER_TEXT = "text"


class Health(Enum):
    """Whether a backend takes work."""

    CONNECTING = "connecting"
    READY = "ready"
    DRAINING = "draining"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Load:
    """A backend's own latest report; zeros mean that it said nothing."""

    running: int = 0
    waiting: int = 0
    queued_prefill_tokens: int = 0
    context_tokens: int = 0
    kv_used_tokens: int = 0
    kv_total_tokens: int = 0
    step_time_ratio: float = 1.0
    prefill_tokens_per_step: float = 0.0
    step_time: float = 0.0
    max_running: int = 0
    prefill_budget: int = 0


@dataclass(slots=True)
class Backend:
    """A backend as the router knows it at one moment. Nobody changes it.

    Not frozen, since that triples the cost of making one, and each dispatch makes one.

    `sent_since` and `sent_tokens_since` are this router's dispatches that the
    report in `load` does not know of yet, `ended_since` its requests that ended
    after it; `cooling_until` is a time on the snapshot's clock before which it is
    not tried. `outlook` is derived from the others once, see prediction.
    """

    id: str
    tier: Tier
    health: Health
    models: frozenset[str]
    load: Load = Load()
    in_flight: int = 0
    sent_since: int = 0
    sent_tokens_since: int = 0
    ended_since: int = 0
    round_trip: float = 0.0
    cooling_until: float = float("-inf")
    drained: bool = False
    resumes: Mapping[str, frozenset[Resume]] = field(default_factory=dict)
    outlook: Outlook | None = field(default=None, init=False, compare=False, repr=False)


class Pool(NamedTuple):
    """Every known backend at one moment."""

    backends: tuple[Backend, ...]


class Request(NamedTuple):
    """What the decision needs of a request.

    `ttft_slo` is what is left of the caller's own limit, None when it set none.
    `tried` holds backends that failed this request.
    """

    model: str
    prompt_tokens: int
    residency: Residency = Residency.LOCAL_FIRST
    ttft_slo: float | None = None
    backend_id: str = ""
    resume: Resume = Resume.FRESH
    tried: frozenset[str] = frozenset()


class Overflow(Enum):
    """Why a request leaves its preferred tier."""

    SATURATED = "saturated"
    ABSENT = "absent"
    UNHEALTHY = "unhealthy"
    FAILED = "failed"


class Refusal(Enum):
    """Why a request is not served at all."""

    MODEL_UNKNOWN = "model_unknown"
    NO_BACKEND = "no_backend"
    CANNOT_RESUME = "cannot_resume"


class Candidate(NamedTuple):
    """A backend weighed for one request. `objection` is empty when it is feasible."""

    backend_id: str
    tier: Tier
    objection: str
    score: float
    predicted_ttft: float
    predicted_tpot: float
    free_slot: bool

    @property
    def feasible(self) -> bool:
        """Whether the request may go there now."""
        return not self.objection


class Dispatch(NamedTuple):
    """Send it there."""

    backend_id: str
    tier: Tier
    predicted_ttft: float
    overflow: Overflow | None


class Wait(NamedTuple):
    """Capacity exists; wait for it."""

    why: str


class Refuse(NamedTuple):
    """It cannot be served."""

    refusal: Refusal
    why: str


Verdict = Dispatch | Wait | Refuse


class Decision(NamedTuple):
    """The verdict, and every backend that was weighed, best first."""

    verdict: Verdict
    candidates: tuple[Candidate, ...]
