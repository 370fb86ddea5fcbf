"""What requests cost, in whole micro-USD: by the price table, never too little or below zero."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy import estimates
from services.cloud_proxy.answer import ProviderUsage
from services.cloud_proxy.profile_files import parse_prices
from services.cloud_proxy.profiles import LongPromptPrices, Prices
from tests.support.cloud import ask
from tests.support.provider import route

FACTS = {"source": "invented", "as_of": "2026-01-01"}
# Micro-USD a token: 3 in, 0.3 from the cache, 3.75 into it, 15 out.
PLAIN = Prices(3_000_000, 300_000, 15_000_000, **FACTS)
WRITES = Prices(3_000_000, 300_000, 15_000_000, cache_write=3_750_000, **FACTS)
LONG = Prices(
    3_000_000,
    300_000,
    15_000_000,
    cache_write=3_750_000,
    long_prompt=LongPromptPrices(200_000, 6_000_000, 600_000, 22_500_000),
    **FACTS,
)
LONG_WRITES = Prices(
    3_000_000,
    300_000,
    15_000_000,
    cache_write=3_750_000,
    long_prompt=LongPromptPrices(200_000, 6_000_000, 600_000, 22_500_000, cache_write=7_500_000),
    **FACTS,
)
FREE = Prices(0, 0, 0, **FACTS)
CHEAP = Prices(1, 0, 1, **FACTS)
HUGE = 10**12


def usage(prompt=0, cached=0, completion=0, reasoning=0, written=0) -> ProviderUsage:
    return ProviderUsage(prompt, cached, completion, reasoning, cache_written=written)


@pytest.mark.parametrize(
    ("used", "prices", "cost"),
    [
        (usage(), PLAIN, 0),
        (usage(prompt=10), PLAIN, 30),
        (usage(completion=10), PLAIN, 150),
        (usage(prompt=10, completion=10), PLAIN, 180),
        # Cached tokens are part of the prompt, and priced apart.
        (usage(prompt=10, cached=10), PLAIN, 3),
        (usage(prompt=10, cached=4), PLAIN, 6 * 3 + 2),  # 1.2 is rounded up
        # So are those that are written; without a price of their own they cost as others.
        (usage(prompt=8, written=8), WRITES, 30),
        (usage(prompt=8, written=8), PLAIN, 24),
        (usage(prompt=20, cached=10, written=8), WRITES, 2 * 3 + 3 + 30),
        # Reasoning is part of the completion.
        (usage(completion=10, reasoning=10), PLAIN, 150),
        (usage(completion=10, reasoning=4), PLAIN, 150),
        # The whole request is dearer from one token over the border on.
        (usage(prompt=199_999, completion=2), LONG, 199_999 * 3 + 30),
        (usage(prompt=200_000, completion=2), LONG, 200_000 * 3 + 30),
        (usage(prompt=200_001, completion=2), LONG, 200_001 * 6 + 45),
        (usage(prompt=200_001, cached=200_001), LONG, 120_001),
        (usage(prompt=200_000, cached=200_000), LONG, 60_000),
        # A long prompt's writes: at their price, else at the higher of the two that are known.
        (usage(prompt=200_002, written=200_002), LONG_WRITES, 200_002 * 15 // 2),
        (usage(prompt=200_002, written=200_002), LONG, 200_002 * 6),
        (usage(prompt=200_000, written=200_000), LONG_WRITES, 750_000),
        # Nothing that is free costs, nothing that costs is free.
        (usage(prompt=HUGE, completion=HUGE), FREE, 0),
        (usage(prompt=1), CHEAP, 1),
        (usage(prompt=1_000_000), CHEAP, 1),
        (usage(prompt=1_000_001), CHEAP, 2),
        (usage(prompt=1, cached=1), CHEAP, 0),
        # Counts and prices beyond what a float holds exactly.
        (usage(prompt=HUGE, completion=HUGE), PLAIN, 18 * HUGE),
        (usage(prompt=2**53 + 1), PLAIN, 3 * (2**53 + 1)),
        # Nonsense never makes money.
        (usage(prompt=-5, completion=-5), PLAIN, 0),
        (usage(prompt=5, cached=-5), PLAIN, 30),
        (usage(prompt=5, cached=10), PLAIN, 3),
        (usage(prompt=5, written=10), WRITES, 38),
    ],
)
def test_usage_costs_what_the_price_table_says(used, prices, cost):
    assert estimates.cost_microusd(used, prices) == cost


def test_a_price_table_may_state_what_writing_a_long_prompt_costs():
    found = parse_prices(
        {
            "input": 1,
            "cached_input": 1,
            "output": 1,
            "long_prompt": {
                "over": 9,
                "input": 2,
                "cached_input": 2,
                "output": 2,
                "cache_write": 3,
            },
            **FACTS,
        }
    )
    assert found is not None
    assert found.long_prompt == LongPromptPrices(9, 2, 2, 2, 3)


counts = st.integers(0, 3_000_000)
rates = st.integers(0, 50_000_000)
tables = st.builds(
    Prices,
    rates,
    rates,
    rates,
    st.just("invented"),
    st.just("2026-01-01"),
    st.none() | rates,
    st.none()
    | st.builds(LongPromptPrices, st.integers(1, 600), rates, rates, rates, st.none() | rates),
)


@given(counts, counts, counts, counts, tables)
def test_no_usage_costs_less_than_nothing(prompt, cached, completion, written, prices):
    used = usage(prompt, cached, completion, written=written)
    assert estimates.cost_microusd(used, prices) >= 0


@given(st.data(), tables, st.integers(0, 2000), st.integers(1, 8), st.integers(0, 5000))
def test_what_a_request_may_cost_at_most_covers_all_that_it_can_use(data, prices, size, n, output):
    request = ask("x" * size, sampling=pb.Sampling(n=n))
    most = estimates.cost_at_most(request, prices, output)
    prompt = data.draw(st.integers(0, estimates.prompt_tokens_at_most(request)))
    cached = data.draw(st.integers(0, prompt))
    written = data.draw(st.integers(0, prompt - cached))
    completion = data.draw(st.integers(0, output * n))
    used = usage(prompt, cached, completion, completion, written)
    assert estimates.cost_microusd(used, prices) <= most


@given(tables, st.integers(0, 2000), st.integers(1, 8), st.integers(0, 10**12))
def test_what_is_affordable_costs_no_more_than_there_is(prices, size, n, budget):
    request = ask("x" * size, sampling=pb.Sampling(n=n))
    tokens = estimates.affordable_tokens(request, prices, budget)
    if tokens >= 0:
        assert estimates.cost_at_most(request, prices, tokens) <= budget
        if prices.output and prices.long_prompt is None:
            assert estimates.cost_at_most(request, prices, tokens + 1) > budget


def test_token_ids_count_one_by_one():
    request = pb.GenerateRequest(prompt_token_ids=range(1000))
    assert estimates.prompt_tokens_at_most(request) >= estimates.prompt_tokens(request) == 1000


@pytest.mark.parametrize(
    ("sampling", "override", "model", "tokens"),
    [
        ({"max_tokens": 100}, None, {}, 100),
        ({"max_tokens": 100}, 40, {}, 40),
        ({}, 40, {}, 40),
        ({}, None, {"max_output": 500}, 500),
        ({}, None, {}, 32_768),
        ({"max_tokens": 900}, None, {"max_output": 500}, 500),
        ({"max_tokens": 100_000}, None, {}, 32_768),
        # What is not sent does not bind the provider.
        ({"max_tokens": 100}, None, {"parameters": {"max_tokens": "drop"}}, 32_768),
    ],
)
def test_an_answer_has_no_more_tokens_than_its_limits(tmp_path, sampling, override, model, tokens):
    at = route(tmp_path, "simulator", "sim-chat", base_url="http://127.0.0.1:1", **model)
    request = ask(sampling=pb.Sampling(**sampling))
    assert estimates.output_tokens_at_most(request, at, override) == tokens


def test_without_any_limit_nobody_knows_how_long_an_answer_gets(tmp_path):
    at = route(tmp_path, "simulator", "something-else", base_url="http://127.0.0.1:1")
    assert estimates.output_tokens_at_most(ask(), at) == 0
    limited = ask(sampling=pb.Sampling(max_tokens=7))
    assert estimates.output_tokens_at_most(limited, at) == 7
