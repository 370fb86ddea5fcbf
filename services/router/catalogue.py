"""The models that can be asked for: what ready backends serve, and the policy's names. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from anabranch.v1 import generation_pb2 as pb
from services.router.core.policy import Policy
from services.router.core.values import Health
from services.router.known_backend import KnownBackend


def catalogue(backends: Iterable[KnownBackend], policy: Policy) -> list[pb.ModelInfo]:
    """One entry a name: of a backend's model, of one that the policy maps to a model in each tier,
    of the policy's alias. A backend's own aliases stand in the entry of their model, unless another
    backend has a model of that name. What is promised for a name is what everybody behind it can
    do."""
    served: dict[str, list[pb.ModelInfo]] = {}
    for backend in backends:
        if backend.health is Health.READY:
            for name, info in backend.models.items():
                served.setdefault(name, []).append(info)
    behind = {
        name: infos for name, infos in served.items() if any(info.name == name for info in infos)
    }
    for name, rules in policy.models.items():
        local = _in_tier(served.get(rules.local or name, ()), pb.TIER_LOCAL)
        cloud = _in_tier(served.get(rules.cloud or name, ()), pb.TIER_CLOUD)
        behind[name] = local + cloud
    for alias, variants in policy.aliases.items():
        models = [variant.model for variant in variants if variant.weight > 0]
        behind[alias] = [
            info for model in models for info in behind.get(model, served.get(model, ()))
        ]
    return [_joined(name, infos) for name, infos in behind.items() if infos]


def _in_tier(infos: Iterable[pb.ModelInfo], tier: pb.Tier) -> list[pb.ModelInfo]:
    return [info for info in infos if tier in info.tiers]


def _joined(name: str, infos: Sequence[pb.ModelInfo]) -> pb.ModelInfo:
    """The entry of a name behind which these stand, one for each backend."""
    entry = pb.ModelInfo()
    entry.CopyFrom(infos[0])
    entry.name = name
    entry.backends = len(infos)
    del entry.aliases[:]
    entry.aliases.extend(sorted({other for info in infos for other in info.aliases} - {name}))
    for info in infos[1:]:
        entry.tiers.extend(tier for tier in info.tiers if tier not in entry.tiers)
        both = [can for can in entry.capabilities if can in info.capabilities]
        del entry.capabilities[:]
        entry.capabilities.extend(both)
        lengths = [n for n in (entry.context_length, info.context_length) if n]
        entry.context_length = min(lengths, default=0)
        if info.HasField("prices"):
            _dearest(entry.prices, info.prices)
    return entry


def _dearest(known: pb.TokenPrices, other: pb.TokenPrices) -> None:
    """What a request may cost at most, whoever of the two answers it."""
    for field in ("input", "cached_input", "output"):
        setattr(known, field, max(getattr(known, field), getattr(other, field)))
