"""What a policy says about one model, put together once and not for each of its requests. Pure."""

from __future__ import annotations

from services.router.core.policy import ModelRules, Policy
from services.router.core.values import Terms

_NOTHING_SAID = ModelRules()


def terms_of(policy: Policy, model: str) -> Terms:
    """The terms of a public model name, aliases already resolved."""
    rules = policy.models.get(model, _NOTHING_SAID)
    return Terms(
        local=rules.local or model,
        cloud=rules.cloud or model,
        objective=policy.objective_of(model),
        overflow=policy.overflow_of(model),
        algorithm=policy.algorithm,
        slow_start=policy.slow_start,
        continue_in_cloud=rules.continue_in_cloud,
        weights=policy.weights,
    )
