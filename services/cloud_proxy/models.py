"""A route as callers see it in ListModels and in a session's greeting."""

from __future__ import annotations

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.config import Route

_CAPABILITIES = {
    "generate": pb.CAPABILITY_GENERATE,
    "embed": pb.CAPABILITY_EMBED,
    "tools": pb.CAPABILITY_TOOLS,
    "structured_output": pb.CAPABILITY_STRUCTURED_OUTPUT,
    "images": pb.CAPABILITY_IMAGES,
    "reasoning": pb.CAPABILITY_REASONING,
    "resume_text": pb.CAPABILITY_RESUME_TEXT,
}


def describe(route: Route) -> pb.ModelInfo:
    """What can be asked of a route, and what it costs."""
    prices = route.model.prices
    return pb.ModelInfo(
        name=route.name,
        context_length=route.model.context_length,
        tiers=[pb.TIER_CLOUD],
        aliases=route.aliases,
        capabilities=sorted(_CAPABILITIES[c] for c in route.model.capabilities),
        provider=route.profile.name,
        served_model=route.model.name,
        prices=None
        if prices is None
        else pb.TokenPrices(
            # What a router allots must also cover prompts that the provider's cache takes in.
            input=max(prices.input, prices.cache_write or 0),
            cached_input=prices.cached_input,
            output=prices.output,
        ),
    )
