"""What one request used and costs: as stated by the provider, else estimated from what came."""

from __future__ import annotations

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy import estimates
from services.cloud_proxy.answer import Delta, ProviderUsage
from services.cloud_proxy.config import Route


class Account:
    """Counts the output of one request as it comes, since that is what is billed."""

    __slots__ = ("_bytes", "_pieces", "_reasoning_bytes", "_request")

    def __init__(self, request: pb.GenerateRequest) -> None:
        self._request = request
        self._bytes = 0
        self._reasoning_bytes = 0
        self._pieces = 0

    def received(self, delta: Delta, *, shown: bool) -> None:
        """New output; `shown` when its caller sees any of it."""
        if delta.tools:
            self._bytes += sum(len(t.name) + len(t.arguments.encode()) for t in delta.tools)
        if delta.reasoning:
            thought = len(delta.reasoning.encode())
            self._reasoning_bytes += thought
            self._bytes += thought
        self._bytes += len(delta.text.encode())
        self._pieces += shown

    def estimate(self) -> ProviderUsage:
        """Usage where nobody stated it: each piece of output held at least one token."""
        return ProviderUsage(
            prompt=estimates.prompt_tokens(self._request),
            cached=0,
            completion=max(estimates.tokens_of(self._bytes), self._pieces),
            reasoning=estimates.tokens_of(self._reasoning_bytes),
        )

    def write(
        self,
        chunk: pb.GenerateChunk,
        usage: ProviderUsage,
        source: pb.Usage.Source,
        route: Route,
        cost: int,
    ) -> None:
        """Usage and the proxy's part of the receipt: tier, model and cost."""
        prompt, completion = usage.prompt, usage.completion
        continuation = self._request.continuation
        continued = len(continuation.token_ids) or estimates.tokens_of(
            len(continuation.text.encode())
        )
        if continued:
            # The provider counts the earlier output as prompt; the contract counts it as output.
            # Where the border lies is our estimate, whoever counted the sum.
            moved = min(continued, prompt)
            prompt, completion = prompt - moved, completion + moved
            if source == pb.Usage.SOURCE_PROVIDER:
                source = pb.Usage.SOURCE_ESTIMATED
        chunk.usage.prompt_tokens = prompt
        chunk.usage.cached_prompt_tokens = min(usage.cached, prompt)
        chunk.usage.completion_tokens = completion
        chunk.usage.reasoning_tokens = usage.reasoning
        chunk.usage.source = source
        chunk.receipt.tier = pb.TIER_CLOUD
        chunk.receipt.served_model = route.model.name
        chunk.receipt.cost_microusd = cost


def cost_of(usage: ProviderUsage, route: Route) -> int:
    """What usage costs on a route, in micro-USD; 0 where prices are not known."""
    prices = route.model.prices
    return estimates.cost_microusd(usage, prices) if prices is not None else 0
