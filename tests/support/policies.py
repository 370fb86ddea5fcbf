"""Any valid routing policy, for Hypothesis."""

from __future__ import annotations

from math import inf

from hypothesis import strategies as st

from services.router.core.policy import (
    AdmissionRules,
    Affinity,
    Algorithm,
    BreakerRules,
    Budget,
    CacheRules,
    ClassRules,
    HedgeRules,
    ModelRules,
    Objective,
    OverflowRules,
    Policy,
    PriorityClass,
    RetryRules,
    TenantRules,
    Variant,
)

KINDS = ("email", "phone", "card", "cn-id", "secret")


def within(least: float, most: float) -> st.SearchStrategy[float]:
    """A number of a range, often one of those that people write."""
    tidy = st.sampled_from([0.0, 0.001, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 30.0, 60.0, 3600.0])
    return st.one_of(tidy.filter(lambda v: least <= v <= most), st.floats(least, most))


names = st.one_of(
    # Names that YAML takes for something else where they are not quoted.
    st.sampled_from(["no", "1e3", "0x10", "12", "1.5", "null", "true", "a.b", "m:7b", "org/m@v1"]),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,12}", fullmatch=True),
)
weights = within(0, 1_000_000)
objectives = st.builds(Objective, within(0.001, 86_400), st.one_of(st.just(inf), within(1e-4, 60)))
overflows = st.builds(
    OverflowRules,
    st.booleans(),
    within(0.1, 10),
    within(0.1, 10),
    within(1, 10),
    within(0, 600),
)
budgets = st.builds(Budget, st.integers(0, 10**15), within(1, 31_622_400))
kinds = st.frozensets(st.sampled_from(KINDS))
tenants = st.builds(
    TenantRules, st.booleans(), st.none() | budgets, st.booleans(), st.none() | kinds
)
models = st.builds(
    ModelRules,
    st.none() | names,
    st.none() | names,
    st.none() | objectives,
    st.booleans(),
    st.none() | overflows,
    st.booleans(),
)
classes = st.fixed_dictionaries(
    {one: st.builds(ClassRules, within(0, 1 / 3), within(0, 86_400)) for one in PriorityClass}
)


@st.composite
def breakers(draw: st.DrawFn) -> BreakerRules:
    """Breaker rules whose longest rest is no shorter than the first."""
    rests = sorted([draw(within(0.001, 86_400)), draw(within(0.001, 86_400))])
    return BreakerRules(
        draw(st.integers(1, 1000)),
        draw(within(1e-6, 1)),
        draw(st.integers(1, 1_000_000)),
        draw(within(0.1, 3600)),
        draw(within(0.1, 3600)),
        *rests,
    )


@st.composite
def aliases(draw: st.DrawFn) -> dict[str, tuple[Variant, ...]]:
    """Aliases that stand for models that are none of them."""
    found = {}
    for name in draw(st.sets(names, max_size=3)):
        stand_for = draw(st.lists(names, min_size=1, max_size=4, unique=True))
        shares = [draw(weights) for _ in stand_for]
        if not any(shares):
            shares[0] = 1.0
        pairs = zip(stand_for, shares, strict=True)
        found["alias-" + name] = tuple(Variant("m-" + model, share) for model, share in pairs)
    return found


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """A policy that a document may describe."""
    shares = draw(st.dictionaries(names, weights, max_size=3))
    if shares and not any(shares.values()):
        shares["other"] = 1.0
    algorithms = [a for a in Algorithm if shares or a is not Algorithm.WEIGHTED]
    return Policy(
        algorithm=draw(st.sampled_from(algorithms)),
        objective=draw(objectives),
        affinity=Affinity(draw(st.booleans()), draw(st.integers(1, 10_000_000))),
        slow_start=draw(within(0, 3600)),
        breaker=draw(breakers()),
        retry=RetryRules(draw(within(0, 1)), draw(within(0, 1_000_000)), draw(st.integers(1, 10))),
        hedge=HedgeRules(
            draw(st.booleans()), draw(within(0, 1)), draw(within(1, 100)), draw(within(0, 3600))
        ),
        overflow=draw(overflows),
        admission=AdmissionRules(
            draw(st.integers(0, 10_000_000)),
            draw(within(0, 86_400)),
            draw(st.none() | within(0.001, 3600)),
            draw(within(0.01, 3600)),
            draw(classes),
        ),
        weights=shares,
        models=draw(st.dictionaries(names, models, max_size=3)),
        aliases=draw(aliases()),
        tenants=draw(st.dictionaries(st.sampled_from(["*", "a", "no", "7"]), tenants, max_size=3)),
        cloud_budget=draw(st.none() | budgets),
        mask=draw(kinds),
        cache=CacheRules(
            draw(st.booleans()), draw(within(1, 31_622_400)), draw(st.integers(1, 67_108_864))
        ),
    )
