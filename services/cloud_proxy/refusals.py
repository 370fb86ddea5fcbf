"""What the proxy refuses by itself: what must not leave, what it must not fetch, what costs more
than a request allows. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit

from anabranch.v1 import errors_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Violation, invalid
from services.cloud_proxy import estimates
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects.requests import unsupported

_MAX_COST = "routing.max_cost_microusd"


def check_residency(request: pb.GenerateRequest) -> None:
    """Raises Fault for a request that must not leave."""
    if request.routing.residency == pb.RESIDENCY_LOCAL_ONLY:
        raise Fault(
            errors_pb2.ERROR_REASON_ACCESS_DENIED,
            "this request must not leave: its residency is LOCAL_ONLY",
        )


def check_images(request: pb.GenerateRequest, hosts: frozenset[str]) -> None:
    """Raises Fault for image addresses on other hosts: the provider fetches them, so only those
    that the operator trusts are named to it."""
    found = [
        Violation(f"messages[{m}].content[{p}].image.uri", "is not on the allow-list of hosts")
        for m, message in enumerate(request.messages)
        for p, part in enumerate(message.content)
        if part.image.uri and not _is_allowed(part.image.uri, hosts)
    ]
    if found:
        raise invalid(found)


def _is_allowed(uri: str, hosts: frozenset[str]) -> bool:
    try:
        parts = urlsplit(uri)
        return (
            parts.scheme == "https"
            and parts.hostname in hosts
            and parts.username is None
            and parts.port in (None, 443)
        )
    except ValueError:
        return False


def affordable(request: pb.GenerateRequest, route: Route) -> int | None:
    """The max_tokens that keeps a request within its max_cost; None when it needs no change.

    Raises Fault when prices are unknown, or the prompt alone may cost more.
    """
    if not request.routing.HasField("max_cost_microusd"):
        return None
    prices = route.model.prices
    if prices is None:
        raise unsupported(
            _MAX_COST,
            f"what {route.name} costs is not known here, so it cannot be kept",
        )
    if not (prices.input or prices.output):
        return None
    tokens = estimates.affordable_tokens(request, prices, request.routing.max_cost_microusd)
    if tokens < 1:
        raise unsupported(_MAX_COST, f"{route.name} may cost more for the prompt alone")
    wanted = request.sampling.max_tokens if request.sampling.HasField("max_tokens") else None
    if wanted is not None and wanted <= tokens:
        return None
    rule = route.model.parameters.get("max_tokens")
    caps = [
        route.model.context_length or tokens,
        route.model.max_output or tokens,
        (rule and rule.maximum) or tokens,
        tokens,
    ]
    return int(min(caps))
