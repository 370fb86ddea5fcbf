"""The catalogue of attacks with JSON Web Tokens: class -> variant -> how to make the token.

Each is a good token with one thing changed, so a suite can show that the good one is let in and
the other is not. The attacks themselves are in the four files beside this one. What needs a
revocation, a clock or a second request is no token, and is tested where the verifier is.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.jwt_attacks_claims import CLAIM_ATTACKS
from tests.support.jwt_attacks_form import FORM_ATTACKS
from tests.support.jwt_attacks_headers import HEADER_ATTACKS
from tests.support.jwt_attacks_signatures import SIGNATURE_ATTACKS, high_s
from tests.support.jwt_forge import Attack, claims, header, moved, signature, without

ATTACKS: dict[str, dict[str, Attack]] = {
    **SIGNATURE_ATTACKS,
    **HEADER_ATTACKS,
    **CLAIM_ATTACKS,
    **FORM_ATTACKS,
}
"""Class of attack -> variant -> attack. Every one of them must be refused everywhere."""

ACCEPTED: dict[str, Attack] = {
    "EdDSA": header(),
    "ES256": header("ES256"),
    "ES256 with the other s": signature(high_s, "ES256"),
    "typ in capitals": header(typ="AT+JWT"),
    "typ in full": header(typ="application/at+jwt"),
    "issued by a clock that runs ahead": moved(iat=20, exp=20),
    "not before a moment ahead": moved(nbf=20),
    "ended a moment ago": moved(iat=-320, exp=-320),
    "the longest life": moved(exp=300),
    "a claim that nobody knows": claims(future={"nested": [1, 2.5, "x", None, True]}),
    "no tenant": without("tenant"),
}
"""What is unusual but right. The other s of ES256 makes a second text of the same token; that is
harmless: it says the same, and revocation is by `jti`."""


def cases() -> Iterator[tuple[str, Attack]]:
    """Every attack with its name."""
    for kind, variants in ATTACKS.items():
        for variant, attack in variants.items():
            yield f"{kind}: {variant}" if variant else kind, attack
