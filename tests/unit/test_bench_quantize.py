"""The page of what 8 bits gain and lose is made of its figures, and claims what they show."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.quantize import OUT, page


def committed() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(OUT.with_suffix(".json").read_text("utf-8"))
    return found


def test_the_committed_page_is_of_the_committed_figures():
    assert OUT.with_suffix(".md").read_text("utf-8") == page(committed())


@pytest.mark.parametrize(
    ("value", "high", "said"),
    [
        (0.01, 0.02, "loses at most 3 %."),
        (0.01, 0.09, "more cannot be ruled out"),
        (0.05, 0.09, "loses more than 3 % as measured"),
    ],
)
def test_the_claim_holds_only_as_far_as_the_figures_go(value: float, high: float, said: str):
    name, one = next(iter(committed().items()))
    for key in ("next_token_loss", "answers_loss"):
        one["accuracy"][key] = {"value": value, "low": 0.0, "high": high}
    assert said in page({name: one}).splitlines()[-1]


def test_a_size_short_of_the_claim_is_said_too():
    name, one = next(iter(committed().items()))
    one["smaller_than_source"] = 0.4
    assert "less than 58 % smaller" in page({name: one})
