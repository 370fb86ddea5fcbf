"""What is found in texts, what is left alone, and that hostile texts cost no more than others."""

import contextlib
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.masking import KINDS, LONGEST, NAMES
from services.cloud_proxy.masking.checked_numbers import luhn_is_right, resident_id_is_right
from services.cloud_proxy.masking.detection import MOST_ENTITIES, TooManyEntities, find
from services.cloud_proxy.masking.findings import Form, find_in
from tests.support import entities
from tests.support.entities import CARD, CN_ID, EMAIL, JWT, KEY, MOBILE, PEM

ALL = frozenset(KINDS.values())


def found(text: str, kinds=ALL) -> list[tuple[str, str]]:
    return [(NAMES[s.kind], text[s.start : s.end]) for s in find(text, kinds)]


def only(kind: str, *values: str) -> list[tuple[str, str]]:
    return [(kind, value) for value in values]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("write to jane@example.com.", ["jane@example.com"]),
        ("<jane.doe+x@mail.example.co.uk>", ["jane.doe+x@mail.example.co.uk"]),
        ("请联系zhang.san@example.com.cn吧", ["zhang.san@example.com.cn"]),
        ("müller@bücher.example", ["müller@bücher.example"]),
        ("o'brien@example.com 'bob@example.com'", ["o'brien@example.com", "bob@example.com"]),
        ("a@b.example,c@d.example;e@f.example", ["a@b.example", "c@d.example", "e@f.example"]),
        ("x@xn--fiq228c.xn--55qx5d", ["x@xn--fiq228c.xn--55qx5d"]),
        ("ｊａｎｅ＠ｅｘａｍｐｌｅ．ｃｏｍ", ["ｊａｎｅ＠ｅｘａｍｐｌｅ．ｃｏｍ"]),
        (r'{"text": "hi\njane@example.com\u003e"}', ["jane@example.com"]),
        ("ssh root@localhost, pip install x@1.2.3, @jane, a@b", []),
    ],
)  # fmt: skip
def test_email_addresses(text, values):
    assert found(text) == only("email", *values)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("call +49 30 123456 or +442079460958", ["+49 30 123456", "+442079460958"]),
        ("+1 (415) 555-2671, +1-415-555-2671", ["+1 (415) 555-2671", "+1-415-555-2671"]),
        ("0086 13812345678 and 0049 30 123456", ["0086 13812345678", "0049 30 123456"]),
        ("13812345678 or 013812345678", ["13812345678", "013812345678"]),
        ("1.13812345678\n10.13812345679", ["13812345678", "13812345679"]),
        ("手机号13812345678，备用138-1234-5678", ["13812345678", "138-1234-5678"]),
        ("我是张三,+86 138 1234 5678", ["+86 138 1234 5678"]),
        ("１３８１２３４５６７８", ["１３８１２３４５６７８"]),
        ("138‑1234‑5678", ["138‑1234‑5678"]),
        (r'"first line\n13812345678"', ["13812345678"]),
        ('{"phone":13812345678}', ["13812345678"]),
        ("010-62345678-801, (021) 62345678, 0755-23456789",
         ["010-62345678-801", "(021) 62345678", "0755-23456789"]),
        ("(415) 555-2671 or 415.555.2671", ["(415) 555-2671", "415.555.2671"]),
        ("020 7946 0958 2024, 07700 900123", ["020 7946 0958", "07700 900123"]),
        ("0171/1234567; 01 23 45 67 89; 03-1234-5678",
         ["0171/1234567", "01 23 45 67 89", "03-1234-5678"]),
        ("电话：62345678", ["62345678"]),
        ("Tel: 6234 5678, phone number is 555 1234 567", ["6234 5678", "555 1234 567"]),
        ("TEL-13812345678", ["13812345678"]),
    ],
)  # fmt: skip
def test_telephone_numbers(text, values):
    assert found(text) == only("phone", *values)


@pytest.mark.parametrize(
    "text",
    [
        "order 20240115123456 of 2024, no. 100012345678",
        "ORD-13812345678 SN13812345678 #13812345678 id_13812345678",
        "1990-2024, 2024-01-15 10:30:00, 01.02.2024, 01-02-2024",
        "1700000000 and 1700000000000 and 13812345678901",
        "¥13812345678, 0.13812345678, 13812345678.50",
        "open 0800-1200 and 1300-1700",
        "255.255.255.255 10.234.567.8901 v2.10.3000.4000",
        "978-3-16-148410-0, 6901234567892, 62345678",
        "2+12345678, +1000000",
        "550e8400-e29b-41d4-a716-446655440000",
        "12345678901234567890123456789012",
    ],
)
def test_orders_years_and_amounts_are_no_telephone_numbers(text):
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (CARD, [CARD]),
        ("4111111111111111", ["4111111111111111"]),
        ("pay 4111-1111-1111-1111.", ["4111-1111-1111-1111"]),
        ("4111 1111 1111 1111 123 (card and code)", [CARD]),
        ("4111 1111 1111 1111 0127", [CARD]),
        ("1234 4111 1111 1111 1111", [CARD]),
        ("3782 822463 10005 and 378282246310005", ["3782 822463 10005", "378282246310005"]),
        ("5555555555554444,2223003122003222,30569309025904",
         ["5555555555554444", "2223003122003222", "30569309025904"]),
        ("6222021234567890128", ["6222021234567890128"]),
        ("卡号4111111111111111。", ["4111111111111111"]),
        # One digit off; the right sum but no such issuer, or length.
        ("4111 1111 1111 1112", []),
        ("9111111111111111 79927398713 0000000000000000", []),
        ("41111111111111111111111", []),
    ],
)  # fmt: skip
def test_payment_cards(text, values):
    assert found(text) == only("card", *values)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (CN_ID, [CN_ID]),
        ("身份证号11010519491231002x，", ["11010519491231002x"]),
        ("110105 19491231 002X", ["110105 19491231 002X"]),
        ("1101051949123100211010519491231002X", []),
        ("110105194912310021", []),  # another check
        ("11010519491331002X", []),  # a thirteenth month
        ("99010519491231002X", []),  # no such province
    ],
)
def test_chinese_resident_ids(text, values):
    assert found(text) == only("cn-id", *values)


def key(*parts: str) -> str:
    """Put together here, so that no scanner takes this file for a leak."""
    return "".join(parts)


@pytest.mark.parametrize(
    "secret",
    [
        KEY,
        key("sk-", "ant-api03-", "aB3_" * 20),
        key("sk_", "live_", "4eC39HqLyjWDarjtT1zdp7dc"),
        key("AKIA", "IOSFODNN7EXAMPLE"),
        key("ghp_", "0123456789abcdefghijklmnopqrstuvwxyz"),
        key("github", "_pat_", "11ABCDEFG0123456789_abcdef"),
        key("glpat", "-", "0123456789abcdefghij"),
        key("xox", "b-123456789012-abcdefghijkl"),
        key("AIza", "SyA0123456789abcdefghijklmnopqrstuv"),
        key("hf_", "abcdefghijklmnopqrstuvwxyz01234567"),
        key("abs_", "A" * 43),  # a client secret of ours
        JWT,
        PEM,
        PEM.replace("EC ", ""),
        PEM.replace("\n", "\r\n"),
    ],
)  # fmt: skip
def test_keys_of_known_forms_wherever_they_stand(secret):
    for before, after in (("", ""), ("key=", "\n"), ("用密钥", "登录"), ("'", "',"), ("(", ")")):
        assert found(before + secret + after) == only("secret", secret)
    assert found(json.dumps({"k": secret})) == only("secret", json.dumps(secret)[1:-1])


def test_of_other_secrets_only_the_value_goes():
    aws = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    assert found(f"aws_secret_access_key = {aws}") == only("secret", aws)
    assert found("postgres://app:hunter2@db:5432/x") == only("secret", "hunter2")


def test_a_private_key_that_is_cut_off_goes_as_far_as_it_goes():
    half = PEM[: PEM.index("AwEH") + 30]
    assert found(f"see {half}\nand the words after it") == only("secret", half)


@pytest.mark.parametrize(
    "text",
    [
        "sk-learn-tutorial-for-beginners", "task-0123456789abcdefghij", "AKIA", "eyJ.eyJ.x",
        "-----BEGIN CERTIFICATE-----", "-----BEGIN PUBLIC KEY-----", "ghp_short", "https://a/b:c@d",
    ],
)  # fmt: skip
def test_words_that_only_begin_like_keys_stay(text):
    assert found(text) == []


def test_the_longest_wins_and_what_lay_beneath_is_looked_at_again():
    url = "https://jane:pa.ss@mail.example.com/"
    # "pa.ss@mail.example.com" has the form of an address and is longer than the password.
    assert found(url) == only("email", "pa.ss@mail.example.com")
    assert found("bob@example.com13812345678") == [
        ("email", "bob@example.com"),
        ("phone", "13812345678"),
    ]
    assert found(f"{PEM}") == only("secret", PEM)
    assert found(PEM.replace("MHcC", EMAIL)) == only("secret", PEM.replace("MHcC", EMAIL))


def test_only_the_kinds_asked_for():
    text = f"{EMAIL} {MOBILE} {CARD} {CN_ID} {KEY}"
    for name, kind in KINDS.items():
        assert [k for k, _ in found(text, {kind})] == [name]
    assert found(text, ()) == []


@entities.UNHURRIED
@given(st.text("0123456789", min_size=12, max_size=18), st.sampled_from("0123456789"))
def test_the_luhn_check_takes_one_digit_of_ten(digits, last):
    assert luhn_is_right(digits + last) == (entities.luhn_digit(digits) == last)


@entities.UNHURRIED
@given(st.text("0123456789", min_size=17, max_size=17), st.sampled_from("0123456789X"))
def test_the_resident_check_takes_one_of_eleven(digits, last):
    assert resident_id_is_right(digits + last) == (entities.resident_digit(digits) == last)


@entities.UNHURRIED
@given(st.lists(entities.entities, min_size=1, max_size=4))
def test_what_is_made_as_an_entity_is_found(values):
    text = " ; ".join(values)
    assert [value for _, value in found(text)] == values


@entities.UNHURRIED
@given(entities.texts)
def test_spans_are_apart_ordered_and_of_bounded_length(text):
    spans = find(text, ALL)
    for span in spans:
        assert 0 <= span.start < span.end <= len(text)
        assert span.end - span.start <= LONGEST[span.kind]
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))


SIZE = 300_000
HOSTILE = [
    "a", "@", "a@", "a.", "a.b@", "a@b.", "a@b.cc ", "-@-.", "1", "1 ", "1-", "1.", "+1", "+1 ",
    "+12 ", "(0", "0 ", "01 ", "01-", "00 ", "0-9", "4111 ", "4111-1111 ", "41111111111111111 ",
    "6", "110105", "11010519491231 ", "tel", "tel:", "phone number ", "tel 123456 ", "号码", "sk-",
    "sk-a", "sk-0 ", "sk-0123456789abcdef ", "AKIA", "ghp_", "xoxb-", "eyJ", "eyJ-", "eyJa.",
    "eyJabcdefghijk.", "eyJabcdefghijk.ab.", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\nabcdefghijklmnopqrstuvwxyz\n", "-----END ", "://", "://a:",
    "://a:b", "\\", "\\n", "\\u0040", "\\u", '"', '"\\"', "１", "［", "１ ", "[EMAIL_1_", "[", "\n",
    "secret_access_key=", "hooks.slack.com/services/", "SG.", "13812345678", "13812345678 ",
]  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_texts_take_linear_time(unit):
    """Decided by the timeout alone: anything quadratic would take hours, not seconds."""
    text = unit * (SIZE // len(unit))
    for tail in ("!", "@x.example-----END PRIVATE KEY-----"):
        with contextlib.suppress(TooManyEntities):
            find(text + tail, ALL)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    [
        "[" * SIZE,
        '["' + "\\n" * SIZE + 'jane@example.com"]',
        '["' + "\\\\" * SIZE + '\\u0040"]',
        "[" + '"jane@example.com",' * (SIZE // 20) + "1]",
        "[" + "13812345678," * (SIZE // 12) + "1]",
        '{"a":' * 500 + '"\\u0040"' + "}" * 500,
        '["-----BEGIN PRIVATE KEY-----",' + '"x",' * (SIZE // 4) + '"-----END PRIVATE KEY-----"]',
    ],
    ids=range(7),
)
def test_hostile_json_takes_linear_time(text):
    for form in Form:
        with contextlib.suppress(TooManyEntities):
            find_in(text, form, ALL)


def test_a_text_of_nothing_but_entities_is_refused_before_all_are_found():
    assert len(find(f"{EMAIL} " * MOST_ENTITIES, ALL)) == MOST_ENTITIES
    with pytest.raises(TooManyEntities):
        find(f"{EMAIL} " * (MOST_ENTITIES + 1), ALL)


def test_every_kind_of_the_contract_has_a_name_and_a_bound():
    known = set(pb.PiiKind.values()) - {pb.PII_KIND_UNSPECIFIED}
    assert set(KINDS.values()) == set(LONGEST) == known
