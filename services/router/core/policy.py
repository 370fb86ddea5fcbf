"""What an operator decides about routing, as values. Reading a document is services/router/policy.

Times are in seconds, money in millionths of a US dollar, shares between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import inf


class Algorithm(Enum):
    """How feasible backends are ranked."""

    PREDICTED = "predicted"
    LEAST_OUTSTANDING = "lor"
    POWER_OF_TWO = "p2c"
    C3 = "c3"
    ROUND_ROBIN = "round_robin"
    WEIGHTED = "weighted"


class PriorityClass(Enum):
    """Who goes first when capacity is short, the first one first."""

    SYSTEM = "system"
    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Objective:
    """How soon and how fast answers should come; `tpot` is the time per output token, without a
    limit unless an operator sets one: it hangs on the model and the hardware."""

    ttft: float = 10.0
    tpot: float = inf


@dataclass(frozen=True, slots=True)
class Affinity:
    """Whether a prompt goes where its beginning is cached, and how many blocks are remembered."""

    enabled: bool = True
    blocks_per_backend: int = 16_384


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When a backend is left alone: after so many failures in a row, or this share of failures
    among at least `minimum_requests` within `window`, or running without a token for `silence`."""

    consecutive: int = 3
    failure_share: float = 0.5
    minimum_requests: int = 20
    window: float = 10.0
    silence: float = 8.0
    rest: float = 5.0
    longest_rest: float = 60.0


@dataclass(frozen=True, slots=True)
class RetryRules:
    """Repeats may be this share of first attempts, and so many a second besides."""

    ratio: float = 0.2
    per_second: float = 10.0
    attempts: int = 4


@dataclass(frozen=True, slots=True)
class HedgeRules:
    """A second backend is asked when the first one is later than `after` times its predicted
    time to first token, for at most `share` of requests."""

    enabled: bool = False
    share: float = 0.02
    after: float = 2.0
    soonest: float = 0.05


@dataclass(frozen=True, slots=True)
class OverflowRules:
    """The valve of a model opens when no local backend is feasible, and closes once one would
    be feasible with `leave` times its prediction for `hold` seconds."""

    enabled: bool = True
    ttft_margin: float = 1.3
    tpot_margin: float = 1.1
    leave: float = 1.01
    hold: float = 0.5


@dataclass(frozen=True, slots=True)
class ClassRules:
    """`floor` is the share of the line kept for the class, `promote_after` when it is starving."""

    floor: float = 0.0
    promote_after: float = 10.0


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """The line of requests that wait. CoDel sheds when every one of the last `interval` seconds
    saw waits above `target`; `target` None means a quarter of the objective's ttft."""

    max_waiting: int = 1000
    max_wait: float = 30.0
    codel_target: float | None = None
    codel_interval: float = 1.0
    classes: Mapping[PriorityClass, ClassRules] = field(
        default_factory=lambda: {
            PriorityClass.SYSTEM: ClassRules(floor=0.05),
            PriorityClass.INTERACTIVE: ClassRules(floor=0.5),
            PriorityClass.BATCH: ClassRules(floor=0.1),
        }
    )


@dataclass(frozen=True, slots=True)
class ModelRules:
    """One public model name: what it is called in each tier (None: by its public name), whether
    the tiers serve equal weights, so that an answer begun in one may end in the other."""

    local: str | None = None
    cloud: str | None = None
    objective: Objective | None = None
    continue_in_cloud: bool = True
    overflow: OverflowRules | None = None
    cache: bool = True


@dataclass(frozen=True, slots=True)
class Variant:
    """A share of an alias's requests."""

    model: str
    weight: float


@dataclass(frozen=True, slots=True)
class Budget:
    """Money for the cloud: `microusd` for each `period` seconds, aligned to the epoch."""

    microusd: int
    period: float = 86_400.0


@dataclass(frozen=True, slots=True)
class TenantRules:
    """What a tenant may. `cloud_budget` None means no limit of its own."""

    cloud: bool = True
    cloud_budget: Budget | None = None
    cache: bool = False
    mask: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class CacheRules:
    """Which answers are kept, and for how long. Where they are kept is the process's setting."""

    enabled: bool = True
    ttl: float = 3600.0
    max_answer_bytes: int = 262_144


@dataclass(frozen=True, slots=True)
class Policy:
    """All of it. `version` is a hash of the document it was read from."""

    version: str = "default"
    algorithm: Algorithm = Algorithm.PREDICTED
    objective: Objective = Objective()
    affinity: Affinity = Affinity()
    slow_start: float = 10.0
    breaker: BreakerRules = BreakerRules()
    retry: RetryRules = RetryRules()
    hedge: HedgeRules = HedgeRules()
    overflow: OverflowRules = OverflowRules()
    admission: AdmissionRules = field(default_factory=AdmissionRules)
    weights: Mapping[str, float] = field(default_factory=dict)
    """For the algorithm `weighted`, by backend id or zone; 1 where nothing is said."""
    models: Mapping[str, ModelRules] = field(default_factory=dict)
    aliases: Mapping[str, tuple[Variant, ...]] = field(default_factory=dict)
    tenants: Mapping[str, TenantRules] = field(default_factory=dict)
    """By tenant; the entry "*" is for all others."""
    cloud_budget: Budget | None = None
    """Of all tenants together."""
    mask: frozenset[str] = frozenset()
    """Names of PiiKind in lower case, such as "email", for all tenants without an own list."""
    cache: CacheRules = CacheRules()

    def tenant(self, name: str) -> TenantRules:
        """The rules of a tenant."""
        return self.tenants.get(name) or self.tenants.get("*") or _ANYBODY

    def objective_of(self, model: str) -> Objective:
        """The objective of a public model name."""
        rules = self.models.get(model)
        return (rules.objective if rules is not None else None) or self.objective

    def overflow_of(self, model: str) -> OverflowRules:
        """The overflow rules of a public model name."""
        rules = self.models.get(model)
        return (rules.overflow if rules is not None else None) or self.overflow

    def masked_for(self, tenant: str) -> frozenset[str]:
        """What is masked before a tenant's prompt leaves."""
        own = self.tenant(tenant).mask
        return self.mask if own is None else own


_ANYBODY = TenantRules()
