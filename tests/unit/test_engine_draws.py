"""Draws by position: the generator's published numbers, the distribution, and independence."""

from __future__ import annotations

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from services.local_engine.on_vllm.in_core import philox  # noqa: E402
from services.local_engine.on_vllm.in_core.exponential_race import (  # noqa: E402
    Draw,
    draw,
    race_all,
)

FULL = 0xFFFFFFFF
QUANTILE_999 = {3: 16.27, 7: 24.32, 9: 27.88}
"""Of the chi-square distribution, by degrees of freedom."""


@pytest.mark.parametrize(
    ("counter", "key", "published"),
    [
        # The known answers of Random123, the authors' own code, for philox4x32-10.
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((FULL,) * 4, (FULL,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_generator_gives_the_published_numbers(counter, key, published):
    words = [torch.tensor([[word]]) for word in counter]
    assert tuple(philox.philox(tuple(words), [key]).flatten().tolist()) == published


def test_rows_and_columns_draw_the_same_numbers_together_and_alone():
    keys, positions, choices = [(1, 2), (3, FULL), (5, 6)], [0, 9, 2**31], [0, 1, 127]
    together = philox.exponentials(keys, positions, choices, 1003)
    for row in range(3):
        alone = philox.exponentials([keys[row]], [positions[row]], [choices[row]], 77)
        assert torch.equal(alone[0], together[row, :77])
        columns = torch.tensor([0, 1, 2, 3, 4, 500, 1002])
        some = philox.exponentials_of(columns, keys[row], positions[row], choices[row])
        assert torch.equal(some, together[row, columns])


def test_exponentials_are_finite_positive_and_have_mean_and_variance_one():
    drawn = philox.exponentials([(11, 0)], [3], [0], 1 << 18)
    assert torch.isfinite(drawn).all()
    assert drawn.min() > 0
    assert float(drawn.mean()) == pytest.approx(1, abs=0.01)
    assert float(drawn.var()) == pytest.approx(1, abs=0.02)


LOGITS = [2.0, 1.0, 0.0, 0.5, -1.0, -2.0, 1.5, -0.5]


def drawn(count: int, **limits: float) -> list[int]:
    """The tokens at so many positions of one choice."""
    rows = torch.tensor([LOGITS]).expand(count, -1)
    draws = [Draw(77, 0, position, **limits) for position in range(count)]  # type: ignore[arg-type]
    return [int(token) for token in race_all(rows, draws)]


def chi_square(observed: list[float], expected: list[float]) -> float:
    return sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))


def test_tokens_come_with_the_probabilities_of_softmax():
    tokens = drawn(20_000)
    expected = (torch.tensor(LOGITS).softmax(0) * len(tokens)).tolist()
    observed = [float(tokens.count(token)) for token in range(8)]
    assert chi_square(observed, expected) < QUANTILE_999[7]


def test_top_k_and_top_p_leave_the_likeliest_and_their_proportions():
    probabilities = torch.tensor(LOGITS).softmax(0)
    for limits in ({"top_k": 4}, {"top_p": 0.85}):
        tokens = drawn(20_000, **limits)
        kept = sorted(set(tokens))
        assert kept == [0, 1, 3, 6]  # 0.87 together, without the last 0.75
        shares = probabilities[kept] / probabilities[kept].sum() * len(tokens)
        observed = [float(tokens.count(token)) for token in kept]
        assert chi_square(observed, shares.tolist()) < QUANTILE_999[3]


def test_draws_at_neighbouring_positions_choices_and_seeds_are_independent():
    count = 16_000
    rows = torch.zeros(count, 4)
    series = {
        (seed, choice): race_all(rows, [Draw(seed, choice, p) for p in range(count)]).tolist()
        for seed, choice in ((1, 0), (1, 1), (2, 0))
    }
    first = series[1, 0]
    for pairs in (
        list(pairwise(first)),
        list(zip(first, series[1, 1], strict=True)),
        list(zip(first, series[2, 0], strict=True)),
    ):
        observed = [float(pairs.count((a, b))) for a in range(4) for b in range(4)]
        row_sums = [sum(a == n for a, _ in pairs) for n in range(4)]
        column_sums = [sum(b == n for _, b in pairs) for n in range(4)]
        expected = [x * y / len(pairs) for x in row_sums for y in column_sums]
        assert chi_square(observed, expected) < QUANTILE_999[9]


def test_a_row_draws_the_same_token_alone_and_in_company_both_ways():
    torch.manual_seed(5)
    for scale in (0.5, 3.0, 12.0):
        rows = (torch.randn(12, 5003) * scale).to(torch.bfloat16).float()  # with many ties
        rows[3, 100:] = -torch.inf  # a grammar's mask
        limits = [(0, 1.0), (50, 1.0), (0, 0.9), (50, 0.9), (1, 1.0), (4999, 0.999)]
        draws = [Draw(2**62 - 1 - n, n % 3, 41 * n, *limits[n % 6]) for n in range(12)]
        together = race_all(rows, draws).tolist()
        assert draw(rows, draws).tolist() == together
        for n in range(12):
            assert draw(rows[n : n + 1], draws[n : n + 1]).tolist() == [together[n]]
        assert together[4] == together[10] or rows[4].argmax() != rows[10].argmax()
        assert [rows[n].max() == rows[n, together[n]] for n in (4, 10)] == [True, True]
        assert together[3] < 100


def test_tokens_of_equal_probability_stay_together_at_the_edge():
    tokens = {
        int(draw(torch.tensor([[1.0, 0.0, 0.0, 0.0, -9.0]]), [Draw(1, 0, position, top_k=2)]))
        for position in range(200)
    }
    assert tokens == {0, 1, 2, 3}


@pytest.mark.parametrize("top_p", [1e-9, 1e-7, 1e-3, 0.5])
def test_a_flat_distribution_is_drawn_from_whatever_top_p_leaves(top_p):
    flat, one = torch.zeros(1, 50_000), [Draw(1, 0, 0, 0, top_p)]
    assert draw(flat, one).tolist() == race_all(flat, one).tolist()


@pytest.mark.parametrize("value", [torch.nan, -torch.inf, torch.inf])
@pytest.mark.parametrize("limits", [(0, 1.0), (0, 0.9), (5, 0.9)])
def test_logits_that_are_no_numbers_give_some_token_and_end_no_engine(value, limits):
    rows = torch.zeros(2, 300)
    rows[0] = value
    one = Draw(1, 0, 0, *limits)
    for way in (draw, race_all):
        broken, sound = way(rows, [one, one]).tolist()
        assert 0 <= broken < 300
        assert sound == way(rows[1:], [one]).tolist()[0]
