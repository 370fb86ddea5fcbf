"""What the policy says about one model."""

from services.router.core.policy import Algorithm, ModelRules, Objective, OverflowRules, Policy
from services.router.core.terms import terms_of
from services.router.core.values import Terms, Tier


def test_a_model_of_which_nothing_is_said_goes_by_its_name_and_the_general_rules():
    policy = Policy(
        algorithm=Algorithm.C3,
        objective=Objective(ttft=3.0),
        overflow=OverflowRules(leave=1.5),
        slow_start=4.0,
        weights={"a": 2.0},
    )
    assert terms_of(policy, "m") == Terms(
        local="m",
        cloud="m",
        objective=Objective(ttft=3.0),
        overflow=OverflowRules(leave=1.5),
        algorithm=Algorithm.C3,
        slow_start=4.0,
        continue_in_cloud=True,
        weights={"a": 2.0},
    )


def test_a_models_own_rules_come_before_the_general_ones():
    own = ModelRules(
        local="small",
        cloud="large",
        objective=Objective(ttft=1.0, tpot=0.05),
        continue_in_cloud=False,
        overflow=OverflowRules(enabled=False),
    )
    policy = Policy(objective=Objective(ttft=3.0), models={"m": own})
    terms = terms_of(policy, "m")
    assert (terms.name_in(Tier.LOCAL), terms.name_in(Tier.CLOUD)) == ("small", "large")
    assert terms.objective == Objective(ttft=1.0, tpot=0.05)
    assert not terms.overflow.enabled
    assert not terms.continue_in_cloud
    assert terms_of(policy, "other").objective == Objective(ttft=3.0)


def test_a_model_may_have_a_name_of_its_own_in_one_tier_only():
    terms = terms_of(Policy(models={"m": ModelRules(cloud="large")}), "m")
    assert (terms.local, terms.cloud) == ("m", "large")
    assert terms.overflow == Policy().overflow


def test_plain_terms_are_those_of_a_policy_that_says_nothing_but_to_start_slowly():
    plain = Terms.plain("m")
    assert plain == terms_of(Policy(), "m")._replace(slow_start=plain.slow_start)
