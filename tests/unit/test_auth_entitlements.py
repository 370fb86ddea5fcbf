"""What a client's token carries, who may hand what on, and how many quotas are too many."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.auth.authority import Authority
from services.auth.checks import EACH, MOST_QUOTA_TEXT, quota_problems, too_many_quotas
from services.auth.core.roles import BUILT_IN, KNOWN_SCOPES
from services.auth.entitlements import (
    Entitlement,
    built_in_roles,
    entitlement_of,
    of_key,
    rules_for,
)
from services.auth.key_records import ApiKey
from services.auth.rule_records import Quota, Role
from services.chassis.errors import Fault
from services.chassis.model_patterns import allows
from services.chassis.quotas.rules import MAX_RULES, Subject, Unit, read_rules

MODELS = st.lists(st.sampled_from(["*", "a", "a*", "ab", "ab*", "b"]), max_size=3, unique=True)
SCOPES = st.lists(st.sampled_from(sorted(KNOWN_SCOPES - {"admin"})), max_size=3, unique=True)
HELD = st.builds(lambda s, m: Entitlement(tuple(sorted(s)), tuple(sorted(m))), SCOPES, MODELS)
NAMES = ("a", "aa", "ab", "abc", "b", "c")
NOON = 1e6


def key(scopes: tuple[str, ...], models: tuple[str, ...]) -> ApiKey:
    return ApiKey("0" * 16, "orders", "", scopes, models, bytes(32), "admin", NOON)


def quota(tenant: str = "shop", client_id: str = "", model: str = "", **more: int) -> Quota:
    usual = {"amount": 10, "period": 60, "burst": 10} | more
    return Quota(tenant, client_id, model, Unit.REQUESTS, **usual)


def test_roles_add_to_what_is_given_directly() -> None:
    known = {"reader": Role("reader", "", ("observe",), ("lake",))}
    found = entitlement_of(["generate"], ["river"], ["reader"], known)
    assert found == Entitlement(("generate", "observe"), ("lake", "river"))


def test_a_role_that_is_gone_and_a_scope_that_never_was_give_nothing() -> None:
    assert entitlement_of(["root"], [], ["gone"], {}) == Entitlement((), ())


def test_the_built_in_roles_give_what_they_say() -> None:
    roles = built_in_roles()
    assert set(roles) == set(BUILT_IN)
    assert set(roles["administrator"].scopes) == KNOWN_SCOPES - {"relay"}
    assert not {"admin", "relay"} & {
        s for n, r in roles.items() if n != "administrator" for s in r.scopes
    }


@given(HELD, HELD)
def test_a_key_gives_what_both_it_and_its_client_have(
    made_for: Entitlement, now: Entitlement
) -> None:
    found = of_key(key(made_for.scopes, made_for.models), now)
    assert set(found.scopes) == set(made_for.scopes) & set(now.scopes)
    for name in NAMES:
        both = allows(made_for.models, name) and allows(now.models, name)
        assert allows(found.models, name) is both
    assert not now.lacking(found)


@given(HELD, HELD, HELD)
def test_handing_on_what_was_handed_on_gives_no_more(
    one: Entitlement, two: Entitlement, three: Entitlement
) -> None:
    assert not one.lacking(one)
    if not one.lacking(two) and not two.lacking(three):
        assert not one.lacking(three)
    if not one.lacking(two):
        assert set(two.scopes) <= set(one.scopes)
        assert all(allows(one.models, name) for name in NAMES if allows(two.models, name))


@given(HELD, HELD)
def test_who_may_not_grant_it_may_not_manage_who_has_it(
    held: Entitlement, other: Entitlement
) -> None:
    authority = Authority("deputy", "shop", held)
    verdicts = []
    for check in (
        lambda: authority.check_grants(other),
        lambda: authority.check_manages("shop", other),
    ):
        try:
            check()
        except Fault:
            verdicts.append(False)
        else:
            verdicts.append(True)
    assert verdicts == [not held.lacking(other)] * 2


@given(HELD)
def test_another_tenants_is_refused_in_the_words_for_what_is_not_there(held: Entitlement) -> None:
    authority = Authority("deputy", "shop", held)
    nothing = authority.no_such("client", client_id="x")
    for call in (
        lambda: authority.check_tenant("rival"),
        lambda: authority.check_manages("rival", Entitlement((), ())),
    ):
        with pytest.raises(Fault) as caught:
            call()
        assert (caught.value.message, caught.value.code) == (nothing.message, nothing.code)
        assert not caught.value.metadata


def test_an_administrator_hands_on_everything_everywhere() -> None:
    root = Authority("admin", "operators", Entitlement(("admin",), ()))
    everything = Entitlement(tuple(sorted(KNOWN_SCOPES)), ("*",))
    root.check_manages("rival", everything)
    root.check_grants(everything)
    assert root.own_tenant is None
    assert root.models == ("*",)


def test_a_clients_own_quota_replaces_that_of_everybody() -> None:
    quotas = [
        quota(EACH, EACH, amount=1),
        quota("shop", EACH, amount=2),
        quota("shop", "orders", amount=3),
        quota("shop", "billing", amount=4),
        quota("rival", EACH, amount=5),
    ]
    (rule,) = rules_for(quotas, "shop", "orders")
    assert (rule.subject, rule.limit) == (Subject.CLIENT, 3)
    assert [r.limit for r in rules_for(quotas, "shop", "other")] == [2]
    assert [r.limit for r in rules_for(quotas, "third", "other")] == [1]


def test_a_tenants_quota_stands_beside_its_clients() -> None:
    quotas = [quota(EACH, amount=1), quota("shop", amount=2), quota("shop", EACH, amount=3)]
    found = {(rule.subject, rule.limit) for rule in rules_for(quotas, "shop", "orders")}
    assert found == {(Subject.TENANT, 2), (Subject.CLIENT, 3)}


@given(
    st.lists(
        st.builds(
            quota,
            st.sampled_from([EACH, "shop", "rival"]),
            st.sampled_from(["", EACH]),
            st.sampled_from(["", "a", "a*"]),
            amount=st.integers(1, 5),
        ),
        max_size=20,
    )
)
def test_a_claim_that_is_written_can_be_read(quotas: list[Quota]) -> None:
    rules = rules_for(quotas, "shop", "orders")
    assert read_rules(rule.as_text() for rule in rules) == rules
    assert len({(rule.subject, rule.unit, rule.model) for rule in rules}) == len(rules)


def full(tenant: str) -> list[Quota]:
    """As many quotas as one tenant may have."""
    return [quota(tenant, model=f"model-{i}") for i in range(MAX_RULES)]


def test_a_tenant_may_have_so_many_quotas_and_no_more() -> None:
    assert not too_many_quotas(full("shop")[1:], quota("shop"))
    assert too_many_quotas(full("shop"), quota("shop"))
    assert not too_many_quotas(full("shop"), quota("rival")), "another tenant's do not count"


def test_replacing_one_of_them_is_not_one_more() -> None:
    same = dataclasses.replace(full("shop")[3], amount=99)
    assert not too_many_quotas(full("shop"), same)


def test_a_quota_for_each_tenant_counts_in_every_tenant() -> None:
    assert too_many_quotas(full("shop"), quota(EACH)), "the full tenant would have one too many"
    assert too_many_quotas(full(EACH), quota("shop")), "a new tenant has those of each"
    assert too_many_quotas(full(EACH), quota(EACH, model="one-more"))
    assert not too_many_quotas([], quota(EACH))


@given(
    st.lists(
        st.builds(
            quota,
            st.sampled_from([EACH, "shop", "rival"]),
            st.sampled_from(["", EACH, "orders"]),
            st.integers(0, 40).map(lambda i: f"model-{i}"),
        ),
        max_size=60,
    )
)
def test_no_client_ever_has_more_rules_than_a_token_may_carry(wanted: list[Quota]) -> None:
    kept: dict[str, Quota] = {}
    for one in wanted:
        if not too_many_quotas(list(kept.values()), one):
            kept[one.quota_id] = one
    for tenant in ("shop", "rival", "third"):
        for client_id in ("orders", "other"):
            assert len(rules_for(list(kept.values()), tenant, client_id)) <= MAX_RULES


def test_quotas_are_no_longer_than_a_token_has_room_for() -> None:
    """A few with long names are as much as many with short ones."""
    kept: list[Quota] = []
    for i in range(MAX_RULES):
        one = quota(EACH, EACH, model=f"{i:03}" + "m" * 124, amount=10**15, burst=10**15)
        if not too_many_quotas(kept, one):
            kept.append(one)
    assert 5 <= len(kept) < MAX_RULES
    text = json.dumps([rule.as_text() for rule in rules_for(kept, "shop", "orders")])
    assert len(text) <= MOST_QUOTA_TEXT + 2 * len(kept)
    usual = [quota(model=f"sim-model-{i}*", amount=100_000, burst=100_000) for i in range(23)]
    assert not too_many_quotas(usual, quota())


def test_a_quota_of_a_client_names_its_tenant() -> None:
    fields = [problem.field for problem in quota_problems(quota(EACH, "orders"), 60 * 10**9)]
    assert fields == ["quota.tenant"]
    assert not quota_problems(quota(EACH, EACH), 60 * 10**9)
    assert not quota_problems(quota("shop", "orders", "sim-*"), 60 * 10**9)


@pytest.mark.parametrize(
    ("bounds", "wanted", "lacking"),
    [
        ((), (), []),
        ((), ("10.0.0.0/8",), []),
        (("10.0.0.0/8",), ("10.1.0.0/16", "10.0.0.0/8"), []),
        (("10.0.0.0/8",), (), ["every network"]),
        (("10.0.0.0/8",), ("0.0.0.0/0",), ["network 0.0.0.0/0"]),
        (("10.0.0.0/8", "fd00::/8"), ("fd00:1::/32", "fe80::/10"), ["network fe80::/10"]),
        (("10.0.0.0/8",), ("fd00::/8",), ["network fd00::/8"]),
    ],
)
def test_who_is_bound_to_networks_binds_what_it_hands_on(bounds, wanted, lacking):
    held = Entitlement(("tenant-admin",), ("*",), bounds)
    assert held.lacking(Entitlement((), (), wanted)) == lacking
    assert Entitlement(("admin",), (), bounds).lacking(Entitlement((), (), wanted)) == []


def test_each_client_may_have_a_quota_of_its_own_however_many_clients_there_are():
    many = [quota("shop", f"client-{n}") for n in range(100)]
    assert not too_many_quotas(many, quota("shop", "one-more"))
    full_for_one = [quota("shop", "busy", f"m{n}") for n in range(MAX_RULES)]
    assert too_many_quotas(full_for_one, quota("shop", "busy", "another"))
    assert too_many_quotas(full_for_one, quota("shop")), "the tenant's holds for the busy one too"
    assert not too_many_quotas(full_for_one, quota("shop", "idle"))
