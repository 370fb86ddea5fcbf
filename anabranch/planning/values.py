"""What a plan is made from and what it says: workload, replica, prices, options. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass


class PlanningError(ValueError):
    """Figures that no plan can be made of; the text says which and why."""


@dataclass(frozen=True)
class Workload:
    """What is asked for.

    `requests_per_day` is the mean over the week, `prompt_tokens` and `output_tokens` means of a
    request. `peak` is the busiest hour of a day over that day's mean hour, `weekend` a weekend
    day over a weekday. `private` is the share of requests that may not leave, `cached` the share
    of prompt tokens that prefix caches hold, here and at the provider.
    """

    requests_per_day: float
    prompt_tokens: float
    output_tokens: float
    peak: float = 2.5
    weekend: float = 1.0
    private: float = 0.0
    cached: float = 0.0


@dataclass(frozen=True)
class Replica:
    """One replica of the local model, all its slots busy.

    `output_tokens_per_second` over all of them, `prompt_tokens_per_second` while it reads
    prompts; `dollars_per_hour` for all GPUs of it, power and people included as wanted.
    """

    output_tokens_per_second: float
    prompt_tokens_per_second: float
    slots: int
    dollars_per_hour: float

    def seconds(self, work: Workload) -> float:
        """How long a request holds its slot while all slots are busy, in seconds."""
        read = work.prompt_tokens * (1 - work.cached) / self.prompt_tokens_per_second
        return self.slots * (read + work.output_tokens / self.output_tokens_per_second)


@dataclass(frozen=True)
class StepPace:
    """The time of an engine's step in microseconds: fixed, and for each prompt token that it
    reads, each sequence that it decodes, each token of context that running sequences hold."""

    base: float
    prefill: float
    decode: float
    context: float

    def replica(
        self,
        work: Workload,
        *,
        slots: int,
        kv_tokens: int,
        dollars_per_hour: float,
        token_time: float = math.inf,
    ) -> Replica:
        """A replica of this pace. Its slots are those whose tokens fit into the KV cache, and with
        which a step takes no longer than `token_time`, in seconds.

        Raises PlanningError when that leaves none, or the pace is no pace.
        """
        whole = work.prompt_tokens + work.output_tokens
        if kv_tokens:
            slots = min(slots, int(kv_tokens / whole))
        if slots < 1:
            raise PlanningError(
                f"a request of {whole:,.0f} tokens does not fit into a KV cache of {kv_tokens:,}"
            )
        held = work.prompt_tokens + work.output_tokens / 2
        each = self.decode + self.context * held
        if not self.base + each > 0:
            raise PlanningError("the engine has not learnt yet how long its steps take")
        if each > 0 and token_time < math.inf:
            slots = min(slots, int((token_time * 1e6 - self.base) / each))
        if slots < 1 or self.base > token_time * 1e6:
            raise PlanningError(
                f"one request alone takes {(self.base + each) / 1e3:,.0f} ms a token, and no more "
                f"than {token_time * 1e3:,.0f} ms are wanted"
            )
        step = self.base + slots * each
        return Replica(
            output_tokens_per_second=slots / step * 1e6,
            prompt_tokens_per_second=1e6 / self.prefill if self.prefill > 0 else math.inf,
            slots=slots,
            dollars_per_hour=dollars_per_hour,
        )


@dataclass(frozen=True)
class CloudPrices:
    """What a provider charges, in dollars for a million tokens."""

    prompt: float
    output: float
    cached_prompt: float | None = None

    def request(self, work: Workload) -> float:
        """Dollars for a request."""
        cached = self.prompt if self.cached_prompt is None else self.cached_prompt
        prompt = self.prompt * (1 - work.cached) + cached * work.cached
        return (work.prompt_tokens * prompt + work.output_tokens * self.output) / 1e6


@dataclass(frozen=True)
class Option:
    """A way to serve it: so many replicas, the rest in the cloud. Dollars are for a year.

    `cloud_share` is of all requests, `utilisation` of all slots over the year. `objection` says
    why it cannot be chosen; empty when it can.
    """

    replicas: int
    local_dollars: float
    cloud_dollars: float
    cloud_share: float
    utilisation: float
    objection: str = ""

    @property
    def dollars(self) -> float:
        """What both cost together."""
        return self.local_dollars + self.cloud_dollars


@dataclass(frozen=True)
class Plan:
    """The three ways, what each number of replicas costs, and from where on replicas pay.

    `first_replica_pays_from` and `local_only_pays_from` are requests a day, None where they never
    do. `request_seconds` is how long a request takes on a full replica, `peak_requests` how many
    run at once in the busiest hour, on average.
    """

    work: Workload
    replica: Replica
    prices: CloudPrices
    request_seconds: float
    peak_requests: float
    cloud_only: Option
    local_only: Option
    hybrid: Option
    options: tuple[Option, ...]
    first_replica_pays_from: float | None
    local_only_pays_from: float | None
