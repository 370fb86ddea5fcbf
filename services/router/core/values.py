"""What a routing decision is made from, and what it is. Values only.

Times are in seconds, sizes in tokens, money in millionths of a US dollar. What is made anew for
each request is a named tuple: those cost a third of a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from services.router.core.policy import (
    Algorithm,
    Objective,
    OverflowRules,
    PriorityClass,
)

if TYPE_CHECKING:
    from services.router.core.prediction import Outlook
    from services.router.core.prefix import PrefixIndex


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


class Coefficients(NamedTuple):
    """How long a step of an engine takes, in seconds: of every step, for each prompt token that it
    prefills, for each sequence that it decodes, for each token of context that it holds."""

    base: float
    prefill: float
    decode: float
    context: float


class Prices(NamedTuple):
    """Micro-USD per million tokens."""

    input: int
    output: int


@dataclass(frozen=True, slots=True)
class Load:
    """A backend's own latest report; zeros mean that it said nothing.

    `coefficients` are None until the backend has learnt them.
    """

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
    coefficients: Coefficients | None = None


@dataclass(slots=True)
class Backend:
    """A backend as the router knows it at one moment. No decision changes it; its tracker does.

    `sent_since` and `sent_tokens_since` are dispatches that the report in `load` does not know
    of yet (this router's, times the number of routers), `ended_since` this router's requests that
    ended after it. `cooling_until` is a time on the decision's clock before which it is not tried,
    `ready_since` the one since which it serves. `mean_output` is how long answers are, `ttft` and
    `ttft_p95` what this router saw of it. `outlook` follows from the others, see prediction.
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
    ready_since: float = float("-inf")
    drained: bool = False
    resumes: Mapping[str, frozenset[Resume]] = field(default_factory=dict)
    prices: Mapping[str, Prices] = field(default_factory=dict)
    zone: str = ""
    weight: float = 1.0
    mean_output: float = 200.0
    ttft: float = 0.0
    ttft_p95: float = 0.0
    outlook: Outlook | None = field(default=None, init=False, compare=False, repr=False)


class Pool(NamedTuple):
    """Every known backend at one moment.

    `prefixes` says what their prefix caches hold, `turn` counts decisions, for round robin.
    """

    backends: tuple[Backend, ...]
    prefixes: PrefixIndex | None = None
    turn: int = 0


class Terms(NamedTuple):
    """What the policy says about one model: the same for all its requests while it is in force.

    `local` and `cloud` are the model's names in each tier.
    """

    local: str
    cloud: str
    objective: Objective = Objective()
    overflow: OverflowRules = OverflowRules()
    algorithm: Algorithm = Algorithm.PREDICTED
    slow_start: float = 0.0
    continue_in_cloud: bool = True
    weights: Mapping[str, float] = {}

    @classmethod
    def plain(cls, model: str) -> Terms:
        """Those of a model of which the policy says nothing."""
        return cls(model, model)

    def name_in(self, tier: Tier) -> str:
        """What backends of the tier call the model."""
        return self.local if tier is Tier.LOCAL else self.cloud


class Request(NamedTuple):
    """What the decision needs of a request.

    `ttft_slo` is what is left of the caller's own limit, None when it set none, and `waited` how
    long it has been here. `tried` holds backends that failed this request. `blocks` names the
    beginnings of its prompt, `affinity` what it wants to share a backend with. `max_cost` is the
    most that it may cost, `budget` what its tenant has left, None where there is no limit.
    `overflowing` says that the model's overflow valve is open,
    `begun_in` where an answer that is to be gone on with has been so far. So many are `ahead` of it
    in the line; one that is `impatient` may not wait for a local slot if another tier takes it.
    `billed_tokens` is what a provider may bill the prompt as, 0 where no money is in question.
    """

    model: str
    prompt_tokens: int
    residency: Residency = Residency.LOCAL_FIRST
    ttft_slo: float | None = None
    backend_id: str = ""
    resume: Resume = Resume.FRESH
    tried: frozenset[str] = frozenset()
    priority: PriorityClass = PriorityClass.INTERACTIVE
    waited: float = 0.0
    max_output: int = 0
    blocks: tuple[int, ...] = ()
    affinity: str = ""
    max_cost: int | None = None
    budget: int | None = None
    cloud_allowed: bool = True
    overflowing: bool = False
    begun_in: Tier | None = None
    ahead: int = 0
    impatient: bool = False
    billed_tokens: int = 0


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
    NO_BUDGET = "no_budget"
    NOT_ALLOWED = "not_allowed"


class Candidate(NamedTuple):
    """A backend weighed for one request. `objection` is empty when it is feasible.

    `cached_tokens` is what its prefix cache is thought to hold of the prompt, `cost` what the
    answer is expected to cost there.
    """

    backend_id: str
    tier: Tier
    objection: str
    score: float
    predicted_ttft: float
    predicted_tpot: float
    free_slot: bool
    cached_tokens: int = 0
    cost: int = 0

    @property
    def feasible(self) -> bool:
        """Whether the request may go there now."""
        return not self.objection


class Dispatch(NamedTuple):
    """Send it there. `tokens` is what its prompt will take to prefill, `cost` what to reserve for
    it, `comfortable` whether an open overflow valve may close, `late` that the objective will be
    missed."""

    backend_id: str
    tier: Tier
    predicted_ttft: float
    overflow: Overflow | None
    tokens: int = 0
    cost: int = 0
    comfortable: bool = False
    late: bool = False


class Wait(NamedTuple):
    """Capacity exists; wait for it. `expected` is how long that may take, `money` what a budget
    would have to hold for the cloud to take it now, 0 where that is not the matter. One that
    `may_leave` waits by choice: the cloud would take it in time, should nothing come free."""

    why: str
    expected: float = 0.0
    money: int = 0
    may_leave: bool = False


class Refuse(NamedTuple):
    """It cannot be served. `money` as in Wait."""

    refusal: Refusal
    why: str
    money: int = 0


Verdict = Dispatch | Wait | Refuse


class Decision(NamedTuple):
    """The verdict, and every backend that was weighed, best first."""

    verdict: Verdict
    candidates: tuple[Candidate, ...]
