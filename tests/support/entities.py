"""Made-up personal data and keys, and Hypothesis strategies of texts that hold them.

Numbers carry right check digits, computed here a second time and in another way than in the
service. Keys are put together from parts, so that no scanner takes this file for a leak.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""No test of these fails for a busy machine."""

EMAIL = "jane.doe+orders@mail.example.com"
MOBILE = "13812345678"
PHONE = "+44 20 7946 0958"
CARD = "4111 1111 1111 1111"
CN_ID = "11010519491231002X"
KEY = "sk-" + "proj-0123456789abcdefghijklmnop"
JWT = "eyJ" + "hbGciOiJFZERTQSJ9.eyJzdWIiOiJqYW5lIn0.c2lnbmF0dXJl_-AA"
PEM = (
    "-----BEGIN " + "EC PRIVATE KEY-----\n"
    "MHcCAQEEIKkXc0HbP2BqYwEJ7nD0d0p1Yb0n1x1cX7uZ8m9n0b1aoAoGCCqGSM49\n"
    "AwEHoUQDQgAE0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOP\n"
    "-----END EC PRIVATE KEY-----"
)

VALUES = (EMAIL, MOBILE, PHONE, CARD, CN_ID, KEY, JWT, PEM)
"""One of each form, for tests that follow them through the system."""


def luhn_digit(digits: str) -> str:
    """The digit that makes a card number right, found by trying."""

    def total(number: str) -> int:
        doubled = [int(d) * (2 if n % 2 else 1) for n, d in enumerate(reversed(number))]
        return sum(d - 9 if d > 9 else d for d in doubled)

    return next(d for d in "0123456789" if total(digits + d) % 10 == 0)


def resident_digit(digits: str) -> str:
    """The check of GB 11643: the whole, in powers of two, leaves 1 when divided by 11."""
    weighted = sum(int(d) * 2 ** (17 - n) for n, d in enumerate(digits))
    check = (1 - weighted) % 11
    return "X" if check == 10 else str(check)


def _digits(count: int) -> st.SearchStrategy[str]:
    return st.text("0123456789", min_size=count, max_size=count)


_WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=12)

emails = st.builds("{}.{}@{}.example.{}".format, _WORD, _WORD, _WORD,
                   st.sampled_from(["com", "org", "com.cn"]))  # fmt: skip
mobiles = st.builds("1{}{}".format, st.sampled_from("3456789"), _digits(9))
cards = st.builds(
    lambda digits: (lambda d: f"{d[:4]} {d[4:8]} {d[8:12]} {d[12:]}")(digits + luhn_digit(digits)),
    st.builds("4{}".format, _digits(14)),
)
resident_ids = st.builds(
    lambda place, day, order: (lambda d: d + resident_digit(d))(f"{place}{day}{order}"),
    st.sampled_from(["110105", "440308", "310115"]),
    st.dates().filter(lambda d: 1900 <= d.year < 2030).map(lambda d: d.strftime("%Y%m%d")),
    _digits(3),
)
keys = st.builds("sk-live0{}".format, st.text("abcXYZ0189", min_size=20, max_size=40))
entities = st.one_of(emails, mobiles, cards, resident_ids, keys, st.sampled_from(VALUES))

plain = st.text(
    st.one_of(
        st.sampled_from(" \n.,:;-()[]{}<>_@+\"'/\\[EMAIL_1[PHONE_23联系电话Größe"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=12,
)
texts = st.lists(st.one_of(plain, plain, entities), max_size=8).map("".join)
"""Texts with entities in them, often next to what should make no difference."""


def cut(text: str, cuts: list[int]) -> list[str]:
    """The text in pieces, cut at these places, some of them empty."""
    points = sorted(min(c, len(text)) for c in cuts)
    ends = [*points, len(text)]
    return [text[a:b] for a, b in zip([0, *points], ends, strict=True)]
