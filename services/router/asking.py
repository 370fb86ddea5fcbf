"""A request as decisions see it: what the policy makes of its model, its tenant and its prompt.

Made once a request; `values` is made for each decision on it. Acts on nothing.
"""

from __future__ import annotations

from collections.abc import Hashable

from anabranch.v1 import generation_pb2 as pb
from services.chassis.prompt_blocks import prompt_blocks
from services.router.core import values
from services.router.core.feasibility import ASSUMED_OUTPUT
from services.router.core.policy import PriorityClass
from services.router.core.values import Residency, Resume
from services.router.decisions import Decisions
from services.router.spending import Payer, Spending

_RESIDENCIES: dict[int, Residency] = {
    pb.RESIDENCY_UNSPECIFIED: Residency.LOCAL_FIRST,
    pb.RESIDENCY_LOCAL_FIRST: Residency.LOCAL_FIRST,
    pb.RESIDENCY_LOCAL_ONLY: Residency.LOCAL_ONLY,
    pb.RESIDENCY_CLOUD_FIRST: Residency.CLOUD_FIRST,
    pb.RESIDENCY_CLOUD_ONLY: Residency.CLOUD_ONLY,
}
_CLASSES: dict[int, PriorityClass] = {
    pb.PRIORITY_UNSPECIFIED: PriorityClass.INTERACTIVE,
    pb.PRIORITY_INTERACTIVE: PriorityClass.INTERACTIVE,
    pb.PRIORITY_BATCH: PriorityClass.BATCH,
    pb.PRIORITY_SYSTEM: PriorityClass.SYSTEM,
}
_SHORT = 4096
# As the cloud proxy reckons for a limit on the cost: what it is not sure to be paid for it cuts.
_BYTES_PER_BILLED_TOKEN = 2
_BILLED_PER_MESSAGE = 8
_BILLED_PER_IMAGE = 1600
_BILLED_PER_DELIVERED = 4
_NOBODY: frozenset[str] = frozenset()


class Asking:
    """What a request asks for. `name` is the model's name there, `model` what that stands for,
    `resolved` the same where that is another one; `tenant` is whose it is and `payer` who pays;
    `max_cost` is what is left of the most that it may cost; `blocks` names the beginnings of its
    prompt."""

    __slots__ = (
        *("_affinity", "_backend_id", "_cloud_allowed", "_decisions", "blocks", "max_cost"),
        *("_billed_tokens", "_max_output", "_prompt_tokens", "_request", "_spending", "_ttft_slo"),
        *("klass", "model", "name", "residency", "payer", "resolved", "tenant", "terms"),
    )

    def __init__(
        self,
        request: pb.GenerateRequest,
        payer: Payer,
        decisions: Decisions,
        spending: Spending,
        model: str = "",
    ) -> None:
        """`model` is what the request's name was found to stand for before, if it was."""
        self._decisions = decisions
        self._spending = spending
        self.payer = payer
        self.tenant = payer.tenant
        self.residency = Residency.LOCAL_FIRST
        self.klass = PriorityClass.INTERACTIVE
        self._ttft_slo: float | None = None
        self.max_cost: int | None = None
        self._backend_id = self._affinity = ""
        if request.HasField("routing"):
            routing = request.routing
            self.residency = _RESIDENCIES[routing.residency]
            self.klass = _CLASSES[routing.priority]
            self._backend_id = routing.backend_id
            self._affinity = routing.affinity_key
            if routing.HasField("ttft_slo"):
                self._ttft_slo = routing.ttft_slo.ToNanoseconds() / 1e9
            if routing.HasField("max_cost_microusd"):
                self.max_cost = routing.max_cost_microusd
        policy = decisions.policy_now()
        self.name = name = request.model
        self.model = model or decisions.resolve(name, self._affinity)
        self.resolved = "" if self.model == name else self.model
        self.terms = decisions.terms(self.model)
        self._cloud_allowed = policy.tenant(self.tenant).cloud
        self._max_output = _longest_output(request) if request.HasField("sampling") else 0
        self._prompt_tokens = estimated_prompt_tokens(request)
        self._request = request
        self._billed_tokens = 0
        self.blocks = prompt_blocks(request, self.terms.local) if policy.affinity.enabled else ()

    def claim(self, *, resuming: bool) -> Hashable:
        """What it waits for: those with the same are decided alike. None: it is like no other, for
        limits of its own make a request pickier than its neighbours."""
        if self.max_cost is not None or (self._ttft_slo is not None and not resuming):
            return None
        return (self.payer.accounts, self.residency, self._backend_id)

    def spend(self, amount: int) -> None:
        """So much more of what it may cost is set aside or spent; a negative amount comes back."""
        if self.max_cost is not None:
            self.max_cost -= amount

    def must_wait(self, verdict: values.Verdict) -> bool:
        """Whether a verdict means to wait: for capacity, or for money that is being asked for."""
        if isinstance(verdict, values.Dispatch):
            return False
        coming = bool(verdict.money) and self._spending.ask_for(self.payer, verdict.money)
        return coming or isinstance(verdict, values.Wait)

    def values(
        self,
        *,
        elapsed: float = 0.0,
        resume: Resume = Resume.FRESH,
        delivered: int = 0,
        tried: frozenset[str] = _NOBODY,
        begun_in: values.Tier | None = None,
        ahead: int = 0,
        impatient: bool = False,
    ) -> values.Request:
        """The request as values, `elapsed` seconds after its arrival.

        A resumed answer has had its first token: its own limit for that applies no more. It has
        `delivered` tokens less to generate, and as many more to read.
        """
        slo = self._ttft_slo
        if slo is not None:
            slo = max(slo - elapsed, 0.001) if resume is Resume.FRESH else None
        budget = None
        if values.Tier.CLOUD in self.residency.tiers:
            budget = self._spending.available(self.payer)
        billed = 0
        if budget is not None or self.max_cost is not None:
            # Only where money matters: it takes a walk through the request.
            billed = self._billed_tokens or billed_tokens_at_most(self._request)
            self._billed_tokens = billed
            billed += _BILLED_PER_DELIVERED * delivered
        return values.Request(
            self.model,
            self._prompt_tokens + delivered,
            self.residency,
            slo,
            self._backend_id,
            resume,
            tried,
            self.klass,
            elapsed if resume is Resume.FRESH else 0.0,
            max(self._max_output - delivered, 1) if self._max_output else 0,
            self.blocks,
            self._affinity,
            self.max_cost,
            budget,
            self._cloud_allowed,
            self._decisions.overflowing(self.model),
            begun_in,
            ahead,
            impatient,
            billed,
        )


def estimated_prompt_tokens(request: pb.GenerateRequest) -> int:
    """A guess at the prompt's length, for load prediction only: four bytes a token.

    A short request counts as it is on the wire, without a walk through its messages.
    """
    known = len(request.prompt_token_ids)
    if request.HasField("continuation"):
        known += len(request.continuation.token_ids)
    size = request.ByteSize()
    if size > _SHORT or known:
        # Its bulk may be images, tools or token ids.
        size = len(request.prompt)
        for message in request.messages:
            size += 8 + sum([len(part.text) for part in message.content])
    return known + size // 4 + 1


def billed_tokens_at_most(request: pb.GenerateRequest) -> int:
    """What a provider may bill the prompt as, at most; images count by number, not by size."""
    size, images = request.ByteSize(), 0
    for message in request.messages:
        for part in message.content:
            if part.HasField("image"):
                images += 1
                size -= part.ByteSize()
    per_message = _BILLED_PER_MESSAGE * max(len(request.messages), 1)
    return -(-size // _BYTES_PER_BILLED_TOKEN) + per_message + _BILLED_PER_IMAGE * images


def _longest_output(request: pb.GenerateRequest) -> int:
    """Tokens of all its choices together; 0 where it is one, and has no limit."""
    sampling = request.sampling
    if sampling.n > 1:
        return (sampling.max_tokens or ASSUMED_OUTPUT) * sampling.n
    return sampling.max_tokens
