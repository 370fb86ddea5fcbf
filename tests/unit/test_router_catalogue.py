"""What the router's list of models promises for a name behind which several backends stand."""

from __future__ import annotations

from anabranch.v1 import generation_pb2 as pb
from services.router.catalogue import _joined


def info(tier: pb.Tier, prices: pb.TokenPrices | None = None) -> pb.ModelInfo:
    return pb.ModelInfo(name="m", tiers=[tier], prices=prices)


def test_prices_are_the_dearest_of_those_who_may_answer_whoever_comes_first():
    local = info(pb.TIER_LOCAL)
    cheap = info(pb.TIER_CLOUD, pb.TokenPrices(input=1, cached_input=1, output=9))
    dear = info(pb.TIER_CLOUD, pb.TokenPrices(input=3, output=4))
    for order in ([local, cheap, dear], [dear, local, cheap]):
        assert _joined("m", order).prices == pb.TokenPrices(input=3, cached_input=1, output=9)


def test_a_name_without_prices_has_none():
    assert not _joined("m", [info(pb.TIER_LOCAL), info(pb.TIER_CLOUD)]).HasField("prices")
